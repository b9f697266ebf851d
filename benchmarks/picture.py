"""Bars and lines for pictures, with one colour for each optimizer everywhere. Knows matplotlib, and no benchmark."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Summary = Mapping[str, float]

COLORS = {
    "torch_bnb 8-bit": "tab:orange",
    "torch_bnb 32-bit": "gold",
    "torch fused": "tab:blue",
    "torch foreach": "lightsteelblue",
    "bitsandbytes 8-bit": "tab:green",
    "bitsandbytes 32-bit": "palegreen",
    "torchao 8-bit": "tab:purple",
    "deepspeed 32-bit": "tab:brown",
}


def panels(count: int, width: float = 6.0, height: float = 4.0) -> tuple[plt.Figure, list[plt.Axes]]:
    """A figure with so many panels beside each other."""
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def bars(axes: plt.Axes, values: Mapping[str, Mapping[str, Summary]], scale: float = 1.0) -> None:
    """Groups of bars: values by group and optimizer, with their quartiles as whiskers."""
    names = [name for name in COLORS if any(name in group for group in values.values())]
    width = 0.85 / max(1, len(names))
    for index, name in enumerate(names):
        places = [place for place, group in enumerate(values.values()) if name in group]
        found = [group[name] for group in values.values() if name in group]
        medians = [scale * value["median"] for value in found]
        whiskers = [
            [scale * (value["median"] - value["q1"]) for value in found],
            [scale * (value["q3"] - value["median"]) for value in found],
        ]
        offsets = [place + (index - (len(names) - 1) / 2) * width for place in places]
        axes.bar(offsets, medians, width, yerr=whiskers, color=COLORS[name], label=name, error_kw={"lw": 0.8})
    axes.set_xticks(range(len(values)), list(values))


def lines(axes: plt.Axes, values: Mapping[str, Mapping[float, Summary]], scale: float = 1.0, **style: Any) -> None:
    """A line for each optimizer through (x, median), its quartiles as a band."""
    for name, points in values.items():
        xs = sorted(points)
        axes.plot(xs, [scale * points[x]["median"] for x in xs], "o-", ms=3, color=COLORS[name], label=name, **style)
        low, high = ([scale * points[x][quartile] for x in xs] for quartile in ("q1", "q3"))
        axes.fill_between(xs, low, high, color=COLORS[name], alpha=0.2, lw=0)


def save(figure: plt.Figure, path: Path, caption: str) -> None:
    """Writes a PNG, with a legend that all panels share and the machine beneath."""
    handles = [axes.get_legend_handles_labels() for axes in figure.axes]
    labelled = {label: handle for pair in handles for handle, label in zip(*pair, strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper center", ncols=4, fontsize="small")
    figure.supxlabel(caption, fontsize="x-small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
