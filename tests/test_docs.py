"""What the documents say, run."""

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import accelerate_bnb
import lightning_bnb
import torch_bnb

ROOT = Path(__file__).parents[1]
MODULES = [
    name
    for package in (torch_bnb, lightning_bnb, accelerate_bnb)
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not name.endswith("._C")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


@pytest.mark.parametrize("name", torch_bnb.optim.rules.__all__)
def test_every_rule_has_an_example_that_runs(name):
    rule = getattr(torch_bnb.optim, name)
    examples = doctest.DocTestFinder(recurse=False).find(rule, name)[0]
    assert len(examples.examples) >= 4
    assert doctest.DocTestRunner().run(examples).failed == 0
    assert "optim_bits: Bits per element of state" in rule.__doc__ and "https://" in rule.__doc__


def test_the_readmes_snippets_run():
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    snippets = [snippet for snippet in snippets if "# Lightning: one callback" not in snippet]
    assert len(snippets) == 7
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)
    optimizer, model = namespace["optimizer"], namespace["model"]
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    assert "exp_avg" in optimizer.state[model.embed.weight]
    assert "exp_avg" in optimizer.state[model.head.linear.weight]


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ("overrides.md", 13),
        ("checkpoints.md", 7),
        ("rounding.md", 1),
        ("lightning.md", 6),
        ("accelerate.md", 7),
        ("migrate.md", 5),
    ],
)
def test_the_pages_snippets_run(page, count, tmp_path, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    assert len(snippets) == count
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for snippet in snippets:
        exec(compile(snippet, page, "exec"), namespace)


def test_rates_under_schedules_that_set_their_own_are_those_of_the_page(manager):
    page = (ROOT / "docs" / "overrides.md").read_text()
    rows = re.findall(
        r"^\| `(OneCycleLR|CyclicLR)\((.*)\)` \| ([\d.e-]+).* \| ([\d.e-]+) \| ([\d.e-]+)", page, re.MULTILINE
    )
    assert len(rows) == 4
    parameter = torch.nn.Parameter(torch.zeros(8))
    manager.override_config(parameter, "lr", 1e-4)
    for name, rates, built_with, lowest, peak in rows:
        optimizer = torch_bnb.optim.AdamW([parameter], lr=float(built_with))
        given = {key: float(value) for key, value in (rate.split("=") for rate in rates.split(", "))}
        length = {"total_steps": 10} if name == "OneCycleLR" else {"step_size_up": 4}
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **given, **length)
        seen = [manager.explain(optimizer)[0].lr]
        for _ in range(9):
            optimizer.step()
            scheduler.step()
            seen.append(manager.explain(optimizer)[0].lr)
        assert (min(seen), max(seen)) == pytest.approx((float(lowest), float(peak)), rel=1e-6, abs=0)


def test_the_table_in_the_lightning_page_is_what_the_callback_prints(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "lightning.md").read_text()
    first = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    table = re.search(r"```\n(EightBitOptimizer.*?)```", page, flags=re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(first, "lightning.md", "exec"), {"__name__": "page"})
    assert table in capsys.readouterr().out


@pytest.mark.parametrize(("page", "least"), [("distributed.md", 17), ("lightning.md", 20), ("accelerate.md", 13)])
def test_what_works_where_names_tests_that_there_are(page, least):
    table = (ROOT / "docs" / page).read_text().partition("## What works where\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= least
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


def test_the_readmes_numbers_are_the_committed_result():
    command = [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pages_of_the_optimizers_and_the_type_stub_are_what_their_classes_say():
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_in_documents_point_to_files():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
