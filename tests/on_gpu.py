"""`make gpu`: builds for the GPU at hand and runs everything that needs one. No network, no environment of its own.

Every stage writes a log; gpu.json says what ran on what, what passed, and why a stage was left out.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).parents[1]
ON_DEVICE = ("rules", "step", "options", "checkpoint", "capturable", "plan", "faults", "variants")
"""Files of the suite that are run once more with tensors on the GPU."""


def stages(out: Path) -> dict[str, list[str]]:
    """What is run, in order; every path absolute."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--skip-missing"]
    at_once = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    on_device = [str(path) for name in ON_DEVICE if (path := ROOT / f"tests/test_{name}.py").exists()]
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    short = ["tests/test_gpu.py", "-k", "every_rule_in_every_dtype or every_option or graph or codec"]
    example = [sys.executable, "examples/lightning_gpt.py", "--accelerator", "gpu", "--out", str(out / "demo")]
    return {
        "build": [sys.executable, "setup.py", "build_ext", "--inplace"],
        "doctor": [sys.executable, "-m", "torch_bnb", "doctor"],
        "gpu tests": [*pytest, "-m", "gpu", f"--junitxml={out / 'gpu-tests.xml'}", "tests"],
        "suite on the CPU": [*pytest, *at_once, "tests"],
        "suite on the GPU": [*pytest, *at_once, "--device", "cuda", f"--junitxml={out / 'suite-cuda.xml'}", *on_device],
        "memcheck": [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *pytest, *short],
        "racecheck": [sanitizer, "--tool", "racecheck", "--error-exitcode", "9", *pytest, *short[:2], "codec or unorm"],
        "Lightning example": example,
    }


def why_not(stage: str, command: list[str]) -> str | None:
    """Why a stage cannot run here, or None."""
    if not shutil.which(command[0]):
        return f"there is no {command[0]}"
    needs = {"Lightning example": ("lightning", "rich"), "gpu tests": ("pytest", "hypothesis")}
    missing = [name for name in needs.get(stage, ()) if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def counts_in(command: list[str]) -> dict[str, int]:
    """Tests by outcome, and what they counted themselves, of a stage's report, if it writes one."""
    path = next((Path(part.split("=", 1)[1]) for part in command if part.startswith("--junitxml=")), None)
    if path is None or not path.exists():
        return {}
    suite = ElementTree.parse(path).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    return counts | {found.get("name"): int(found.get("value")) for found in suite.iter("property")}


def main() -> int:
    """Runs the stages that were asked for; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="*", help="some of them, by name")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"make gpu needs a CUDA device; torch {torch.__version__} sees none", file=sys.stderr)
        return 1
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_BNB_CUDA": "1"}
    environment.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "stages": {},
    }
    for stage, command in stages(out).items():
        if args.stages and stage not in args.stages:
            continue
        reason = why_not(stage, command)
        if reason is None:
            start = time.perf_counter()
            with open(out / f"{stage.replace(' ', '-').lower()}.log", "w") as log:
                code = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
                ).returncode
            outcome = {"exit": code, "seconds": round(time.perf_counter() - start, 1)}
        else:
            outcome = {"left out": reason}
        outcome |= counts_in(command)
        result["stages"][stage] = outcome
        print(f"{stage}: {outcome}", flush=True)
        (out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
        if stage == "build" and outcome.get("exit"):
            break
    return int(any(outcome.get("exit") for outcome in result["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
