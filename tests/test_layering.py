"""The structure that docs/architecture.md promises."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES

import torch_bnb as bnb
from torch_bnb.overrides.spec import OverrideSpec, known_options

ROOT = Path(__file__).parents[1]


def imports(path):
    """Modules that a file imports, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_registered_ops_are_the_rows_of_cases_are_the_exported_rules():
    names = [name.partition("::") for name in torch._C._dispatch_get_all_op_names()]
    ops = {re.sub(r"\.(on_device|by_address)$", "", name) for library, _, name in names if library == "torch_bnb"}
    classes = {getattr(bnb.optim, name).rule: getattr(bnb.optim, name) for name in bnb.optim.rules.__all__}
    assert ops == set(CASES) == set(classes)
    assert all(CASES[name].optimizer is classes[name] for name in CASES)


# What each layer must not import, from the bottom up.
FORBIDDEN = {
    "torch_bnb/ops.py": r"torch_bnb\.(codec|optim|overrides|checkpoint)",
    "torch_bnb/codec.py": r"torch_bnb\.(optim|overrides|checkpoint)",
    "torch_bnb/optim/sharding.py": r"torch_bnb",
    "torch_bnb/optim/host.py": r"torch_bnb\.(?!optim$|optim\.sharding)",
    "torch_bnb/optim/state.py": r"torch_bnb\.(optim(?!$|\.(sharding|host))|overrides|checkpoint)",
    "torch_bnb/optim/paging.py": r"torch_bnb\.(optim(?!$|\.(state|calls))|overrides|checkpoint)",
    "torch_bnb/optim/slots.py": r"torch_bnb\.overrides\.(manager|GlobalOptimManager)",
    "torch_bnb/optim/base.py": r"torch_bnb\.(optim\.(rules|variants)|overrides\.(manager|GlobalOptimManager))",
    "torch_bnb/overrides": r"torch_bnb\.(?!overrides|tables)",
    "torch_bnb/overrides/spec.py": r"torch_bnb",
    "torch_bnb/overrides/hints.py": r"torch_bnb",
    "torch_bnb/overrides/declare.py": r"torch_bnb\.overrides\.(?!hints|spec)",
    "torch_bnb/overrides/names.py": r"torch_bnb\.overrides\.(?!spec)",
    "torch_bnb/overrides/resolve.py": r"torch_bnb\.overrides\.(?!declare|hints|names|spec)",
    "torch_bnb/overrides/holders.py": r"torch_bnb\.overrides\.(?!names|hints)",
    "torch_bnb/overrides/registry.py": r"torch_bnb\.overrides\.(?!holders|resolve|names|hints|spec)",
    "torch_bnb/overrides/explain.py": r"torch_bnb\.overrides\.(?!registry|resolve|hints)",
    "torch_bnb/tables.py": r"torch_bnb|torch",
    "torch_bnb/checkpoint": r"torch_bnb\.(overrides(?!$|\.spec)|optim\.(?!state|sharding|host|options))",
    "torch_bnb/checkpoint/checks.py": r"torch_bnb",
    "torch_bnb/checkpoint/portable.py": r"torch_bnb\.checkpoint\.(?!checks)",
    "torch_bnb/checkpoint/formats": r"torch_bnb\.checkpoint\.(?!checks|portable|losses|formats)",
    "torch_bnb/checkpoint/files.py": r"torch_bnb\.(?!checkpoint)",
    "torch_bnb": r"lightning|pytorch_lightning|accelerate|bitsandbytes|torchao\b",
    "torch_bnb/monitor.py": r"torch_bnb\.(checkpoint|overrides|cli)",
    "benchmarks": r"torch_bnb\.",
    "lightning_bnb/twins.py": r"lightning(?!_bnb)|lightning_bnb",
    "lightning_bnb/standins.py": r"lightning(?!_bnb)|lightning_bnb\.(?!twins)",
    "lightning_bnb/replace.py": r"lightning(?!_bnb)|lightning_bnb\.(?!standins)",
    "lightning_bnb/build.py": r"lightning_bnb\.(callback|mixin)|lightning\.pytorch\.strategies",
    "accelerate_bnb": r"lightning|torch_bnb\.(ops|codec|checkpoint|memory|overrides|_C)\b|torch_bnb\.optim\.\w+\.",
    "lightning_bnb": r"accelerate|torch_bnb\.(ops|codec|checkpoint|memory|overrides|_C)\b|torch_bnb\.optim\.\w+\.",
}


# Who asks for state in torchao's form gets it in torchao's class.
ALLOWED = {"torch_bnb/checkpoint/formats/torchao.py": "torchao.optim.subclass_8bit"}


@pytest.mark.parametrize("place", FORBIDDEN)
def test_imports_point_downwards(place):
    path = ROOT / place
    for file in [path] if path.suffix else path.rglob("*.py"):
        allowed = ALLOWED.get(str(file.relative_to(ROOT)))
        names = {name for name in imports(file) if not (allowed and name.startswith(allowed))}
        wrong = {name for name in names if re.match(FORBIDDEN[place], name)}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


BOUNDARY = ("ops.h", "cuda/stream.h")
INCLUDES = {
    "codec.h": set(),
    "rules.h": {"codec.h"},
    "random.h": {"codec.h"},
    "storage.h": {"codec.h"},
    "floats.h": {"codec.h"},
    "batch.h": {"rules.h", "storage.h"},
    "header.h": set(),
    "check.h": set(),
    "layer.h": {"batch.h"},
    "ops.h": {"batch.h", "header.h"},
    "cpu/lanes.h": {"../codec.h"},
    "cpu/code.h": {"../storage.h", "lanes.h"},
    "cpu/noise.h": {"../random.h", "lanes.h"},
    "cpu/state.h": {"code.h", "noise.h"},
    "cpu/convert.h": {"../batch.h", "../floats.h", "noise.h"},
    "cpu/block.h": {"convert.h", "state.h"},
    "cpu/kernels.h": {"../layer.h"},
    "cpu/coded.h": {"block.h"},
    "cpu/driver.h": {"coded.h", "kernels.h"},
    "cuda/code.cuh": {"../floats.h", "../storage.h"},
    "cuda/quad.cuh": {"../batch.h", "../random.h", "code.cuh"},
    "cuda/form.h": {"../layer.h"},
    "cuda/part.h": {"form.h"},
    "cuda/warp.cuh": {"code.cuh"},
    "cuda/lane.cuh": {"../layer.h", "quad.cuh", "warp.cuh"},
    "cuda/step.cuh": {"lane.cuh", "part.h"},
    "cuda/measure.cuh": {"part.h"},
    "cuda/kernels.h": {"part.h"},
    "cuda/stream.h": {"../check.h"},
}


def test_every_header_has_its_place():
    headers = (path for suffix in ("h", "cuh") for path in (ROOT / "csrc").rglob(f"*.{suffix}"))
    assert {str(path.relative_to(ROOT / "csrc")) for path in headers} == set(INCLUDES)


@pytest.mark.parametrize("header", INCLUDES)
def test_headers_include_only_what_is_below_them(header):
    text = (ROOT / "csrc" / header).read_text()
    assert set(re.findall(r'#include "(.*)"', text)) == INCLUDES[header]
    assert ("torch/" in "".join(re.findall(r"#include <(.*)>", text))) == (header in ("ops.h", "cuda/stream.h"))


HOSTED = [
    name for name in INCLUDES if "cpu/" not in name and name.endswith(".h") and name not in ("ops.h", "cuda/stream.h")
]


@pytest.mark.parametrize("header", HOSTED)
def test_torch_free_headers_compile_alone(header, tmp_path):
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{header}"\n')
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT / 'csrc'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_bnb_needs_nothing_but_torch():
    new = "{m.split('.')[0] for m in set(sys.modules) - had}"
    code = f"import sys, torch; had = set(sys.modules); import torch_bnb; print(*{new})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    third_party = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert third_party == {"torch_bnb"} or third_party == {"torch_bnb", "torch"}


def test_the_typed_keys_are_the_known_keys():
    assert set(OverrideSpec.__annotations__) == {*known_options(), "is_sparse"}


SIGNUM = {
    "csrc/rules.h": (
        "template <class... Rules>\nstruct RuleList",
        """struct Signum {
  static constexpr Name kName = "signum";
  static constexpr std::array kScalars{"lr", "momentum"};
  static constexpr std::array kStates{Sign::kSigned};
  float lr, momentum;
  BNB_HD float direction(float, float g, float& m) const {
    m = momentum * m + g;
    return sign(m);
  }
};

template <class... Rules>
struct RuleList""",
    ),
    "torch_bnb/optim/rules.py": (
        "class Lion(",
        '''class Signum(BlockwiseOptimizer):
    """Sign of the momentum (https://arxiv.org/abs/1802.04434).

    ::

        m = momentum * m + g
        p = p - lr * sign(m)

    Args:
        params: Parameters.
        lr: Learning rate.
        momentum: Decay of m.
        {common}

    Raises:
        ValueError: An option has an impossible value.

    Note:
        For tests.

    Example:
        >>> import torch, torch_bnb as bnb
    """

    rule = "signum"
    states = {"momentum_buffer": SIGNED}
    options = {"lr": RATE, "momentum": NON_NEGATIVE}

    def __init__(self, params: ParamsT, lr: float = 1e-4, momentum: float = 0.9, **common: Any) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum}, common)

    @override
    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        return {"lr": float(config["lr"]), "momentum": config["momentum"]}


class Lion(''',
    ),
    "tests/cases.py": (
        "CASES = {",
        """class SignumOracle(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.9, maximize=False):
        super().__init__(params, {"lr": lr, "momentum": momentum, "maximize": maximize})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.mul_(group["momentum"]).add_(-p.grad if group["maximize"] else p.grad)
                p.sub_(group["lr"] * m.sign())


CASES = {
    "signum": Case(bnb.optim.Signum, SignumOracle, ({}, {"momentum": 0.5}, {"maximize": True}), 1e-3, 0.25),""",
    ),
}


@pytest.mark.slow
def test_a_new_rule_touches_three_files(tmp_path):
    for name in ("csrc", "torch_bnb", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, (old, new) in SIGNUM.items():
        text = (tmp_path / name).read_text()
        assert text.count(old) == 1
        (tmp_path / name).write_text(text.replace(old, new))
    for name, add in (
        ("csrc/rules.h", ("LAMB, LARS>", "LAMB, LARS, Signum>")),
        ("torch_bnb/optim/rules.py", ('"RMSprop"]', '"RMSprop", "Signum"]')),
    ):
        text = (tmp_path / name).read_text()
        assert text.count(add[0]) == 1
        (tmp_path / name).write_text(text.replace(*add))

    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*command, code=0):
        command = [sys.executable, *command]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("setup.py", "build_ext", "--inplace")
    tests = [f"tests/test_{part}.py" for part in ("rules", "step", "faults", "checkpoint", "ops")]
    output = run("-m", "pytest", "-q", "-k", "signum", "-p", "no:cacheprovider", *tests)
    assert int(re.search(r"(\d+) passed", output)[1]) > 40
    # The page and the names for editors are written from the three files, by a program.
    stale = run("docs/generate.py", "--check", code=1)
    assert "docs/optimizers/signum.md, torch_bnb/optim/variants.pyi; run `make docs`" in stale
    run("docs/generate.py")
    run("docs/generate.py", "--check")
    assert "p = p - lr * sign(m)" in (tmp_path / "docs/optimizers/signum.md").read_text()
    run("-c", "import torch_bnb, torch; print(torch_bnb.optim.Signum8bit([torch.zeros(9, requires_grad=True)]))")
