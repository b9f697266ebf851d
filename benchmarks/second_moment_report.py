"""What second_moment.py measured, as tables and as a picture. Trains nothing."""

import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

WINDOW = 50  # steps that one point of a curve averages
COLORS = {
    "fp32": "tab:gray",
    "8-bit nearest": "tab:red",
    "8-bit stochastic": "tab:blue",
}


def summarise(runs: list[dict]) -> list[dict]:
    """Per task, shift and variant: the validation loss over seeds, and its paired difference to fp32 at equal seed."""
    rows = []
    loss = {(r["task"], r["shifts"], r["variant"], r["seed"]): r["validation loss"] for r in runs}
    for task, shifts, variant in dict.fromkeys(key[:3] for key in loss):
        seeds = [seed for *case, seed in loss if tuple(case) == (task, shifts, variant)]
        values = [loss[task, shifts, variant, seed] for seed in seeds]
        paired = [
            value - loss[task, shifts, "fp32", seed]
            for seed, value in zip(seeds, values, strict=True)
            if (task, shifts, "fp32", seed) in loss
        ]
        ends = [
            r["second moment ratio"][-1]
            for r in runs
            if (r["task"], r["shifts"], r["variant"]) == (task, shifts, variant)
        ]
        enough = len(values) > 1
        rows.append(
            {
                "task": task,
                "shifts": shifts,
                "variant": variant,
                "seeds": len(values),
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if enough else 0.0,
                "difference": statistics.mean(paired) if paired else 0.0,
                "error": statistics.stdev(paired) / len(paired) ** 0.5 if len(paired) > 1 else 0.0,
                "second moment ratio": statistics.mean(ends),
            }
        )
    return rows


def show(record: dict, console: Console) -> None:
    """The two tables."""
    table = Table(title="Decoded moment of the elements whose gradients shrank, over the exact one")
    ratio: dict[tuple, dict[str, float]] = {}
    for row in record["freeze"]:
        ratio.setdefault((row["state"], row["beta"]), {})[_case(row)] = row["ratio"]
    cases = list(dict.fromkeys(map(_case, record["freeze"])))
    for column in ("state", "beta", *cases):
        table.add_column(column, justify="right")
    for (state, beta), found in ratio.items():
        table.add_row(state, str(beta), *(f"{found[case]:.3f}" if case in found else "" for case in cases))
    console.print(table)
    table = Table(title="Validation loss (nats)")
    columns = ("task", "data", "variant", "seeds", "loss", "to fp32, same seed", "second moment")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right")
    for row in record["summary"]:
        table.add_row(
            row["task"],
            "shift" if row["shifts"] else "stay",
            row["variant"],
            str(row["seeds"]),
            f"{row['mean']:.4f} ± {row['deviation']:.4f}",
            f"{row['difference']:+.4f} ± {row['error']:.4f}",
            f"{row['second moment ratio']:.3f}",
        )
    console.print(table)


def _case(row: dict) -> str:
    return f"{'all' if row['every'] == 1 else 'half'} to {row['scale']}, {row['rounding']}"


def draw(record: dict, path: Path) -> None:
    """The freeze, and for every kind of training its curve and the paired differences."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys((run["task"], run["shifts"]) for run in record["runs"]))
    columns = max(2, len(kinds))
    figure, axes = plt.subplots(3, columns, figsize=(4 * columns, 10), layout="constrained")
    for axis, state in zip(axes[0], ("exp_avg_sq", "exp_avg"), strict=False):
        rows = [row for row in record["freeze"] if row["state"] == state]
        for case in dict.fromkeys(map(_case, rows)):
            found = [row for row in rows if _case(row) == case]
            style = {(1, 0.7): ":", (2, 0.7): "--"}.get((found[0]["every"], found[0]["scale"]), "-")
            color = COLORS[f"8-bit {found[0]['rounding']}"]
            slowness, ratios = [1 - row["beta"] for row in found], [row["ratio"] for row in found]
            axis.loglog(slowness, ratios, style, marker=".", color=color, label=case)
        axis.set(xlabel="1 - beta", ylabel="decoded / exact", title=f"{state} after gradients shrank")
        axis.legend(fontsize=7)
    for axis in axes[0][2:]:
        axis.axis("off")
    for column, kind in enumerate(kinds):
        curves, differences = axes[1][column], axes[2][column]
        for variant, color in COLORS.items():
            runs = [run for run in record["runs"] if (run["task"], run["shifts"], run["variant"]) == (*kind, variant)]
            rows = [r for r in record["summary"] if (r["task"], r["shifts"], r["variant"]) == (*kind, variant)]
            for row in rows:
                curve = torch.tensor([run["curve"] for run in runs]).mean(0)
                curves.plot(WINDOW * (1 + torch.arange(len(curve))), curve, color=color, label=variant, linewidth=1)
                name = variant.removeprefix("8-bit ")
                differences.errorbar(name, row["difference"], row["error"], fmt="o", color=color)
        curves.set(xlabel="step", ylabel="training loss", title=f"{kind[0]}, data {'shift' if kind[1] else 'stay'}")
        curves.legend(fontsize=7)
        differences.axhline(0, color="gray", linewidth=0.5)
        differences.set(ylabel="validation loss - fp32's (± standard error)")
    figure.savefig(path, dpi=100)
