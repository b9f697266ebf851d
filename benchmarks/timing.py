"""Times several steps side by side, and says how sure the result is. Knows no optimizer and no tensor.

Noise of a machine comes in waves that last longer than a step. Steps that are to be compared therefore take turns,
A B A B, and are compared pair by pair: a wave slows both halves of a pair and leaves their ratio alone.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

Step = Callable[[], object]
Times = list[float | None]
"""Seconds by round; None where a step did not take part."""

LEAST = 3
"""Rounds that every step takes part in, however slow it is."""


def alternate(
    steps: Mapping[str, Step],
    rounds: int,
    before: Callable[[Step], object] = lambda step: None,
    budget: float = float("inf"),
) -> dict[str, Times]:
    """Runs the steps in turn, round after round.

    Args:
        steps: By name.
        rounds: How many.
        before: Called with a step just before it, not timed: brings the caches into a known state.
        budget: Seconds of its own after which a step sits out the remaining rounds.

    Returns:
        Seconds by name and round.
    """
    times: dict[str, Times] = {name: [] for name in steps}
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(rounds):
            for name, step in steps.items():
                if index >= LEAST and sum(t for t in times[name] if t is not None) >= budget:
                    times[name].append(None)
                    continue
                before(step)
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return times


def summary(values: Iterable[float | None]) -> dict[str, float]:
    """Median, the quartiles around it (between them lies the middle half), and how many values there were."""
    present = [value for value in values if value is not None]
    if len(present) == 1:
        q1 = q3 = present[0]
    else:
        q1, _, q3 = statistics.quantiles(present, n=4, method="inclusive")
    return {"median": statistics.median(present), "q1": q1, "q3": q3, "count": len(present)}


def paired_ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, float]:
    """Summary of the ratios ours / theirs, one of each round in which both took part."""
    return summary(a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None)
