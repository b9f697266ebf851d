"""Runs a function in several real processes that talk over gloo."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(function: Callable[..., Any], processes: int, folder: Path, *arguments: Any) -> list[Any]:
    """Calls ``function(rank, *arguments)`` in each process and returns what they returned, by rank.

    `function` is a module's own, so that a new process can import it. An exception in any process fails the caller.
    """
    context = mp.spawn(_main, (processes, str(folder), function, arguments), nprocs=processes, join=False)
    while not context.join(timeout=120):
        pass
    return [torch.load(folder / f"result{rank}.pt", weights_only=False) for rank in range(processes)]


def _main(rank: int, processes: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"result{rank}.pt")
        dist.barrier()  # gloo may abort a process whose peer has gone while it still closes its connections
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
