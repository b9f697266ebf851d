"""The names that users of 8-bit optimizers know: what Python, editors and type checkers see of them."""

import importlib
import inspect
import pickle
import pydoc
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import torch_bnb as bnb

ROOT = Path(__file__).parents[1]
EVERY_VARIANT = pytest.mark.parametrize("name", bnb.optim.variants.__all__)


def param(n=5000):
    p = torch.randn(n, requires_grad=True)
    p.grad = torch.randn(n)
    return p


def test_variants_fix_the_bits_and_show_it():
    p = param()
    optimizer = bnb.optim.Lion8bit([p], 1e-4)
    optimizer.step()
    assert "exp_avg_codes" in optimizer.state[p]
    assert bnb.optim.PagedAdamW([p]).defaults["optim_bits"] == 32
    assert bnb.optim.Adam8bit.__doc__.startswith("`Adam` with 8-bit state")
    with pytest.raises(ValueError, match="Adam8bit: optim_bits=32: expected 8; use Adam to choose"):
        bnb.optim.Adam8bit([p], optim_bits=32)


@EVERY_VARIANT
def test_help_and_the_signature_show_every_option(name):
    variant = getattr(bnb.optim, name)
    parameters = inspect.signature(variant).parameters
    rule = variant.__base__
    assert list(parameters) == list(inspect.signature(rule).parameters)
    assert parameters["optim_bits"].default == (8 if name.endswith("8bit") else 32)
    text = pydoc.plain(pydoc.render_doc(variant))
    assert f"class {name}({rule.__module__}.{rule.__name__})" in text and "max_unorm: float = 0.0" in text
    assert "percentile_clipping: Scales a gradient down" in text and "Note:" in text


@EVERY_VARIANT
def test_a_variant_pickles_and_steps_on_as_itself(name):
    p = param()
    optimizer = getattr(bnb.optim, name)([p], lr=1e-3)
    optimizer.step()
    again = pickle.loads(pickle.dumps(optimizer))
    (q,) = again.param_groups[0]["params"]
    assert type(again) is type(optimizer) and torch.equal(p, q)
    q.grad = p.grad.clone()
    optimizer.step()
    again.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", [name for name in bnb.optim.variants.__all__ if name.startswith("Paged")])
def test_paged_is_the_plain_optimizer_on_a_cpu_without_a_warning(name):
    p = param()
    q = p.detach().clone().requires_grad_()
    q.grad = p.grad.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for parameter, kind in ((p, name), (q, name.removeprefix("Paged"))):
            optimizer = getattr(bnb.optim, kind)([parameter], lr=1e-3)
            optimizer.step()
            optimizer.step()
    assert torch.equal(p, q)


def test_a_paged_name_fixes_where_state_is():
    assert bnb.optim.PagedLion([param()]).param_groups[0]["state_device"] == "cpu"
    assert bnb.optim.PagedLion([param()], state_device=torch.device("cpu")).defaults["state_device"] == "cpu"
    with pytest.raises(ValueError, match="PagedLion: state_device=None: expected 'cpu'; use Lion to choose"):
        bnb.optim.PagedLion([param()], state_device=None)


SNIPPET = """
import torch
from typing_extensions import reveal_type

import torch_bnb as bnb

model = torch.nn.Linear(64, 64)
optimizer = bnb.optim.PagedAdamW8bit(model.parameters(), lr=1e-3, max_unorm=0.1)
reveal_type(optimizer)
bnb.optim.LAMB(model.parameters(), optim_bits=8, max_unorm=0.1)
bnb.optim.PagedAdamW8bit(model.parameters(), max_unrom=0.1)
bnb.optim.AdamW(model.parameters(), max_unrom=0.1)
bnb.optim.Lion8bit(model.parameters(), optim_bits=32)
bnb.optim.Lion9bit(model.parameters())
bnb.optim.SGD8bit(model.parameters(), 0.1, momentum="0.9")
"""


def test_a_type_checker_knows_the_names_and_their_options(tmp_path):
    importlib.import_module("mypy")  # which runs apart, where nobody would notice that it is not there
    (tmp_path / "user.py").write_text(SNIPPET)
    # torch's own types are left out: reading them takes ten seconds and is not what is asked.
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = silent\n[mypy-torch.*]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy", "--hide-error-context", "--no-error-summary", str(tmp_path / "user.py")]
    environment = {"MYPYPATH": str(ROOT), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = [line.partition(":")[2] for line in done.stdout.splitlines() if " defined in " not in line]
    expected = [
        ("9: note: ", 'type is "torch_bnb.optim.variants.PagedAdamW8bit"'),
        ("11: error: ", 'Unexpected keyword argument "max_unrom" for "PagedAdamW8bit"; did you mean "max_unorm"?'),
        ("12: error: ", 'Unexpected keyword argument "max_unrom" for "AdamW"; did you mean "max_unorm"?'),
        ("13: error: ", 'incompatible type "Literal[32]"; expected "Literal[8]"'),
        ("14: error: ", 'Module has no attribute "Lion9bit"'),
        ("15: error: ", 'Argument "momentum" to "SGD8bit" has incompatible type "str"; expected "float"'),
    ]
    assert len(said) == len(expected), done.stdout + done.stderr
    for line, (start, part) in zip(said, expected, strict=True):
        assert line.startswith(start) and part in line, line
