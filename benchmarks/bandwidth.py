"""The memory's own speed, and caches brought into a known state. Knows no optimizer."""

import time
from collections.abc import Callable

import torch

from benchmarks.machine import last_level_cache

ASSUMED_CACHE = 64 * 1024**2
"""Bytes of cache where the machine does not say how much it has."""


def _beyond_caches() -> torch.Tensor:
    """Twice what the caches hold."""
    return torch.ones(2 * (last_level_cache() or ASSUMED_CACHE) // 4)


def copy_bandwidth(tries: int = 7) -> float:
    """Bytes per second, those read and those written, of copying float32 beyond the caches: the best of some tries."""
    source = torch.cat([_beyond_caches(), _beyond_caches()])
    target = torch.zeros_like(source)
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / best


def cache_sweep() -> Callable[[], object]:
    """A function that fills the caches with something else, on as many threads as torch uses."""
    buffer = _beyond_caches()
    return lambda: buffer.neg_()
