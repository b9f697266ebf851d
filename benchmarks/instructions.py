"""The GPU's instructions for a block of 256 elements: ``python -m benchmarks.instructions [--out FILE.json]``.

Compiles the kernels for parameters as nearly all are (``PlainForm`` in ``csrc/cuda/form.h``) and reads what they
became. Needs nvcc and cuobjdump, no GPU (``pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`` has the second). A
warp runs each instruction once for its first block, and fewer for further ones, but for the rare paths, which are left
out: what follows a vote that nearly never passes (a code in doubt), and calls, where a division or a root meets a
subnormal or an infinity.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("80", "90", "100")
KERNEL = re.compile(
    r"4stepINS_\w+?\d(?P<rule>[A-Z]\w+?)ENS0_\d+PlainFormILNS_5DTypeE(?P<dtype>\d)ELNS0_5LyingE(?P<lying>\d)"
)
DTYPES = {"0": "fp32", "1": "bf16"}
BITS = {"1": 8, "2": 32}
LINE = re.compile(r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?\w+ +)?(?P<text>[^;]+?)\s*;", re.MULTILINE)
KINDS = {
    "float": ("FADD", "FMUL", "FFMA", "IMAD", "HFMA2"),
    "special": ("MUFU", "F2F", "I2F", "F2I"),
    "exchange": ("SHFL", "REDUX", "CREDUX", "VOTE"),
    "memory": ("LDG", "STG"),
    "other": ("BRA", "EXIT", "BSSY", "BSYNC", "NOP", "BREAK", "WARPSYNC", "LDC", "S2R", "R2UR"),
    "uniform": ("LDCU", "S2UR", "VOTEU"),
}
"""What begins with U is "uniform", once for the warp. What is in none of them is "integer": logic, comparisons,
selections, shifts. Those run at half the rate of float."""


def cuobjdump() -> str:
    """The program, on the PATH or where pip puts it."""
    beside = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = shutil.which("cuobjdump") or next(map(str, beside.glob("*/bin/cuobjdump")), None)
    if not found or not shutil.which("nvcc"):
        raise SystemExit("needs nvcc, and cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return found


def disassemble(architecture: str) -> str:
    """The kernels in the language of an architecture."""
    tool = cuobjdump()
    flags = re.search(r"NVCC_FLAGS = \[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    kept = [flag for flag in re.findall(r'"(.*?)"', flags) if not flag.startswith("-X")]
    with tempfile.TemporaryDirectory() as folder:
        binary = f"{folder}/rules.cubin"
        command = ["nvcc", *kept, f"-arch=sm_{architecture}", "-cubin", str(ROOT / "csrc/cuda/rules.cu"), "-o", binary]
        subprocess.run(command, check=True)
        path = f"{Path(tool).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [tool, "-sass", binary], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
        )
    return done.stdout


def usual_path(code: str) -> list[str]:
    """The instructions of a kernel without those of rare paths."""
    lines = {int(match["address"], 16): match["text"] for match in LINE.finditer(code)}
    end = min((int(target, 16) for target in re.findall(r"CALL\.\S+ .*?(0x[0-9a-f]+)", code)), default=max(lines) + 1)
    targets = {int(target, 16) for target in re.findall(r"BRA\S* .*?(0x[0-9a-f]+)", code)}
    blocks: list[list[str]] = [[]]
    resume, voted = 0, False
    for address, text in sorted(lines.items()):
        if address >= end:
            break
        if address < resume:
            continue
        if address in targets:
            blocks.append([])
        blocks[-1].append(text)
        voted |= text.startswith("VOTE")
        if text.startswith(("BRA", "EXIT", "CALL")):
            blocks.append([])
            if voted and text.startswith("BRA"):
                resume, voted = int(text.split()[-1], 16), False
    rare = re.compile(r"CALL|NOP")
    return [text for block in blocks if not any(map(rare.match, block)) for text in block]


def kind_of(text: str) -> str:
    """Which units run an instruction."""
    name = text.split()[0].split(".")[0]
    if name.startswith("U"):
        return "uniform"
    return next((kind for kind, names in KINDS.items() if name in names), "integer")


def measure(architecture: str) -> list[dict[str, Any]]:
    """A row for every rule, dtype and width."""
    rows = []
    for code in disassemble(architecture).split("Function : ")[1:]:
        kernel = KERNEL.search(code.split()[0])
        if kernel is None:
            continue
        path = usual_path(code)
        row = {"architecture": f"sm_{architecture}", "rule": kernel["rule"], "dtype": DTYPES[kernel["dtype"]]}
        rows.append({**row, "bits": BITS[kernel["lying"]], "instructions": len(path)})
        rows[-1]["kinds"] = dict(Counter(map(kind_of, path)))
    return sorted(rows, key=lambda row: (row["rule"], row["bits"], row["dtype"]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there")
    args = parser.parse_args()
    rows = [row for architecture in ARCHITECTURES for row in measure(architecture)]
    kinds = ["float", "integer", "special", "exchange", "memory", "uniform", "other"]
    table = Table("rule", "bits", "dtype", "", "instructions", *kinds)
    for row in rows:
        cells = [row["rule"], str(row["bits"]), row["dtype"], row["architecture"], str(row["instructions"])]
        table.add_row(*cells, *(str(row["kinds"].get(kind, 0)) for kind in kinds))
    Console(width=120).print(table)
    if args.out:
        version = re.search(r"V[\d.]+", subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout)[0]
        args.out.write_text(json.dumps({"nvcc": version, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
