"""Runs functions and programs in several real processes that talk over gloo.

At the interpreter's end torch 2.13 may abort a process that has done all its work: gloo's thread lets go of the last
operation, which holds a Python object, for which it wants the interpreter's lock; Python ends a thread that asks for it
so late, and the unwinding meets a destructor that must not throw ("terminate called without an active exception"; seen
in a debugger, and with a program of torch alone). Destroying the process group does not end that thread. So processes
of our own leave without an interpreter's end, and a program that ended in this way, and no other, is run again.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
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
    patience = timedelta(minutes=5)  # with a process that takes no part in what all must do
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=patience)
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"result{rank}.pt")
        dist.barrier()  # gloo may abort a process whose peer has gone while it still closes its connections
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
    leave()


def leave() -> None:
    """Ends this process, whose work is done, without the interpreter's end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def program(command: Sequence[Any]) -> str:
    """What a program of several processes printed; it must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(5):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return done.stdout
