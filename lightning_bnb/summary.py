"""The table at the start of a fit, and the bytes measured at its end: by rich where it is installed, else plain."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.optim.optimizer import Optimizer

from torch_bnb import report
from torch_bnb.optim import BlockwiseOptimizer, GlobalOptimManager
from torch_bnb.tables import readable_bytes, render

HEADER = ("parameter", "shape", "bits", "lr", "hint that won")
MOST_ROWS = 40
"""Of an optimizer with more parameters, those that are alike are shown by a few of them."""
OF_EACH = 2


def planned(optimizers: Sequence[Optimizer]) -> str:
    """Who gets what, and below it what the state will take; for the optimizers of torch_bnb."""
    return "\n".join(_table(optimizer) + "\n" + _sizes(optimizer, measured=False) for optimizer in _ours(optimizers))


def measured(optimizers: Sequence[Optimizer]) -> str:
    """What the state takes."""
    return "\n".join(_sizes(optimizer, measured=True) for optimizer in _ours(optimizers))


def say(text: str) -> None:
    """Prints as Lightning's own summaries do: on rich's console, else to the log."""
    if not text:
        return
    if importlib.util.find_spec("rich"):
        import rich

        # What is too wide for a terminal wraps there; no name is cut anywhere.
        rich.get_console().print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        rank_zero_info(f"\n{text}")


def _ours(optimizers: Sequence[Optimizer]) -> list[BlockwiseOptimizer]:
    return [optimizer for optimizer in optimizers if isinstance(optimizer, BlockwiseOptimizer)]


def _table(optimizer: BlockwiseOptimizer) -> str:
    rows = []
    for row in GlobalOptimManager.get_instance().explain(optimizer):
        won = "\n".join(f"{setting.option}={setting.value} by {setting.source}" for setting in row.hints if setting.won)
        smallest = row.overrides.get("min_8bit_size", optimizer.defaults["min_8bit_size"])
        small = optimizer.defaults["optim_bits"] == 8 and row.bits == 32 and math.prod(row.shape) < smallest
        shape = "x".join(map(str, row.shape)) or "1"
        rows.append((row.name, shape, f"{row.bits}{'*' if small else ' '}", f"{row.lr:.3g}", won))
    shown = rows if len(rows) <= MOST_ROWS else list(_some_of_each(rows))
    table = render(
        HEADER,
        shown,
        left=("parameter", "hint that won"),
        title=f"EightBitOptimizer: {type(optimizer).__name__}, {len(rows)} parameters",
    )
    return table + ("\n* fewer than min_8bit_size elements" if any("*" in row[2] for row in rows) else "")


def _some_of_each(rows: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The first few of the rows that differ in name and shape only, and how many more there are."""
    order = {row[2:]: index for index, row in reversed(list(enumerate(rows)))}
    for like, found in groupby(sorted(rows, key=lambda row: order[row[2:]]), key=lambda row: row[2:]):
        alike = list(found)
        yield from alike[:OF_EACH]
        if len(alike) > OF_EACH:
            yield f"... {len(alike) - OF_EACH} more like these", "", *like[:2], ""


def _sizes(optimizer: BlockwiseOptimizer, measured: bool) -> str:
    memory = report(optimizer)
    name, full = type(optimizer).__name__, readable_bytes(memory.total.state_32bit)
    if any(hasattr(parameter, "full_tensor") for group in optimizer.param_groups for parameter in group["params"]):
        full += " (this process's share of them)"
    if measured:
        return f"EightBitOptimizer: state of {name}, measured: {readable_bytes(memory.total.state)}; in 32 bits: {full}"
    text = f"EightBitOptimizer: state of {name}, planned: {readable_bytes(memory.total.planned)}; in 32 bits: {full}"
    if memory.embedding_bytes:
        cost = readable_bytes(memory.embedding_bytes)
        text += f"\nEmbeddings keep 32-bit state, which costs {cost} (embeddings_32bit=False turns it off)."
    return text
