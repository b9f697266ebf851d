"""Trains a byte-level GPT with FSDP2 and 8-bit AdamW, saves, and resumes on another number of processes. Only torch.

    torchrun --nproc-per-node 2 examples/fsdp2.py --save results/fsdp2
    torchrun --nproc-per-node 3 examples/fsdp2.py --resume results/fsdp2

The first command trains, saves a distributed checkpoint and goes on. The second one loads it, prints whether every bit
of weights and optimizer state is the same, goes on, and prints its losses beside those of the first. On GPUs if there
are any (NCCL), else on the CPU (gloo).
"""

import argparse
import hashlib
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from byte_gpt import ByteGPT, Windows, standard_library_text
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

import torch_bnb as bnb

BATCH = 12  # sequences of all processes together


def build(device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = ByteGPT(width=96, layers=2).to(device)
    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.override_named(model, {"*norm*": {"optim_bits": 32}})  # hints given to the whole model hold for its shards
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model, bnb.optim.AdamW8bit(model.parameters(), lr=1e-3, weight_decay=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Windows, steps: range) -> list[float]:
    """The mean loss of each step. The batch is the same on any number of processes; each takes its share."""
    rank, size = dist.get_rank(), dist.get_world_size()
    device = next(model.parameters()).device
    losses = []
    for step in steps:
        share = range(step * BATCH + rank * BATCH // size, step * BATCH + (rank + 1) * BATCH // size)
        tokens, targets = (torch.stack(parts).to(device) for parts in zip(*(data[i] for i in share), strict=True))
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / size)
    return losses


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Of every bit of the weights and of the optimizer's state, however they are spread."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        for key, value in sorted({"weight": parameter.detach(), **optimizer.state[parameter]}.items()):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            bits = whole.cpu().numpy().tobytes() if isinstance(whole, torch.Tensor) else repr(whole).encode()
            digest.update(f"{name} {key}".encode() + bits)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--save", type=Path, metavar="FOLDER", help="train, save into it, and go on")
    way.add_argument("--resume", type=Path, metavar="FOLDER", help="load from it, compare, and go on")
    parser.add_argument("--steps", type=int, default=20, help="before the checkpoint, and after it (default: 20)")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it with torchrun: torchrun --nproc-per-node 2 examples/fsdp2.py --save results/fsdp2")

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if BATCH % dist.get_world_size():
        parser.error(
            f"{BATCH} sequences cannot be shared by {dist.get_world_size()} processes; use 1, 2, 3, 4, 6 or 12"
        )

    def say(text: str) -> None:
        if dist.get_rank() == 0:
            print(text, flush=True)

    model, optimizer = build(device)
    folder = options.save or options.resume
    if options.save:
        data = Windows(standard_library_text(), 128, 2 * options.steps * BATCH, seed=0)
        losses = train(model, optimizer, data, range(options.steps))
        say(f"{dist.get_world_size()} processes: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {options.steps} steps")
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
        saved = {"steps": options.steps, "fingerprint": fingerprint(model, optimizer)}
        saved["losses"] = train(model, optimizer, data, range(options.steps, 2 * options.steps))
        if dist.get_rank() == 0:
            (folder / "expected.json").write_text(json.dumps(saved))
        here = bnb.report(optimizer).total
        say(
            f"saved in {folder}; state on the first process: {here.state / 2**10:.0f} KiB, "
            f"in 32 bits {here.state_32bit / 2**10:.0f} KiB"
        )
    else:
        expected = json.loads((folder / "expected.json").read_text())
        steps = expected["steps"]
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
        exact = fingerprint(model, optimizer) == expected["fingerprint"]
        say(f"{dist.get_world_size()} processes resume from {folder}: every bit the same: {exact}")
        data = Windows(standard_library_text(), 128, 2 * steps * BATCH, seed=0)
        losses = train(model, optimizer, data, range(steps, 2 * steps))
        furthest = max(abs(a - b) for a, b in zip(losses, expected["losses"], strict=True))
        say(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}; the uninterrupted run's differ by at most {furthest:.1e}")
        if not exact:
            raise SystemExit(1)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
