"""Writes the README's numbers from benchmarks/results: ``python benchmarks/readme.py``, or ``--check`` to compare."""

import argparse
import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = {"fp32": "`torch.optim.AdamW`", "8bit": "8-bit `AdamW`, embeddings at 32 bits"}


def spread(values: list[float], digits: int) -> str:
    """Mean, with the standard deviation where there are several values."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def demo_table(result: dict) -> str:
    """The demo's table, over all its seeds."""
    lines = ["| | training loss | validation loss | optimizer state | ms per step |", "|---|---|---|---|---|"]
    for kind, name in NAMES.items():
        runs = [run for run in result["runs"] if run["optimizer"] == kind]
        state = runs[0]["state bytes"]
        lines.append(
            f"| {name} | {spread([run['training loss'] for run in runs], 3)} | "
            f"{spread([run['validation loss'] for run in runs], 3)} | {state / 1e6:.2f} MB "
            f"({state / runs[0]['parameters']:.2f} bytes per parameter) | "
            f"{spread([run['ms per step'] for run in runs], 0)} |"
        )
    seeds = len({run["seed"] for run in result["runs"]})
    caption = (
        f"{seeds} seed{'s, mean ± standard deviation' if seeds > 1 else ''}; {result['steps']} steps, "
        f"{result['threads']} threads, torch {result['torch']}. A small model: the step is dominated by the forward "
        "and backward pass."
    )
    return "\n".join([*lines, "", caption, "", "![Loss curves and memory of the demo](benchmarks/results/demo.png)"])


def main() -> None:
    """Writes, or with --check compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the README differs, write nothing")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    table = demo_table(json.loads((ROOT / "benchmarks/results/demo.json").read_text()))
    text = readme.read_text()
    pattern = r"(<!-- demo: .*?-->\n).*?(<!-- /demo -->)"
    written = re.sub(pattern, lambda match: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL)
    if args.check and written != text:
        raise SystemExit("README.md does not show benchmarks/results/demo.json: run `make readme`")
    if not args.check:
        readme.write_text(written)


if __name__ == "__main__":
    main()
