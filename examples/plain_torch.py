"""Trains the byte-level GPT of byte_gpt.py in plain PyTorch with 8-bit AdamW, and shows who got what.

python examples/plain_torch.py --steps 100
"""

import argparse

import torch
from byte_gpt import ByteGPT, Windows, standard_library_text
from torch.nn import functional as F
from torch.utils.data import DataLoader

import torch_bnb as bnb


def train(steps: int, seed: int = 0) -> tuple[list[float], torch.optim.Optimizer]:
    """Losses, and the optimizer."""
    torch.manual_seed(seed)
    model, text = ByteGPT(), standard_library_text()
    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.register_parameters(model)  # on the CPU; embeddings keep 32-bit state from here on
    manager.override_named(model, {"head.weight": {"lr": 5e-4}})  # a rate of its own, which follows the schedule
    optimizer = bnb.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, optim_bits=8)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    losses = []
    for tokens, targets in DataLoader(Windows(text, 128, steps * 16, seed), batch_size=16):
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(manager.explain(optimizer))
    print(bnb.report(optimizer).headline)
    return losses, optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="default 200")
    losses, _ = train(parser.parse_args().steps)
    print(f"loss {losses[0]:.3f} at first, {sum(losses[-10:]) / len(losses[-10:]):.3f} at last")


if __name__ == "__main__":
    main()
