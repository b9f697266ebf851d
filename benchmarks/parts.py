"""The parts of the CPU step on each instruction set of this machine: ``python -m benchmarks.parts [--out FILE.json]``.

Compiles ``parts.cpp`` over the kernels' headers with the flags of setup.py, and times every part in the L1 cache, the
best of 300 rounds in each of five processes, since some are slower than others, presumably by the addresses that they
draw: what arithmetic costs, apart from memory and threads. Where valgrind is installed it also counts instructions
(``callgrind``; it knows no AVX-512), which no busy machine changes.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import machine

ROOT = Path(__file__).parents[1]
LANES = {"baseline": 4, "avx2": 8, "avx512": 16}
PROCESSES = 5
COUNTED = 1 << 20  # elements; twice as many are run too, and the difference is counted


def build(isa: str, folder: Path) -> Path:
    """The program for an instruction set."""
    source = (ROOT / f"csrc/cpu/isa_{isa}.cpp").read_text()
    target = re.search(r'#pragma GCC target\("(.*)"\)', source)
    flags = re.search(r"CXX_FLAGS = \[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    program = folder / isa
    command = ["c++", *re.findall(r'"(.*?)"', flags), f"-DBNB_ISA={isa}", f"-DBNB_LANES={LANES[isa]}"]
    command += [f"-m{option}" for option in target[1].split(",")] if target else []
    subprocess.run([*command, f"-I{ROOT / 'csrc'}", str(ROOT / "benchmarks/parts.cpp"), "-o", str(program)], check=True)
    return program


def instructions(program: Path, part: int) -> float:
    """Instructions per 16 elements, by callgrind."""
    counts = []
    for elements in (COUNTED, 2 * COUNTED):
        command = [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            str(program),
            str(elements),
            str(part),
        ]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        counts.append(int(re.search(r"Collected : (\d+)", output)[1]))
    return 16 * (counts[1] - counts[0]) / COUNTED


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there")
    args = parser.parse_args()
    counts = shutil.which("valgrind") is not None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for isa in LANES:
            program = build(isa, Path(folder))
            done = [subprocess.run([program], capture_output=True, text=True, check=False) for _ in range(PROCESSES)]
            if any(run.returncode < 0 for run in done):
                Console().print(f"{isa}: not on this machine")
                continue
            lines = zip(*(run.stdout.splitlines() for run in done), strict=True)
            for part, same in enumerate(lines):
                name = same[0].split("\t")[0]
                nanoseconds = min(float(line.split("\t")[1]) for line in same)
                counted = instructions(program, part) if counts and isa != "avx512" else None
                rows.append({"isa": isa, "part": name, "ns": nanoseconds, "instructions per 16": counted})
    table = Table("part", "instruction set", "ns per element", "instructions per 16 elements")
    for row in sorted(rows, key=lambda row: [r["part"] for r in rows].index(row["part"])):
        counted = row["instructions per 16"]
        table.add_row(row["part"], row["isa"], f"{row['ns']:.3f}", "" if counted is None else f"{counted:.0f}")
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
