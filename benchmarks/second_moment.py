"""Does it matter that nearest rounding freezes slow state? Measures the freeze, and trainings with and without it.

    python -m benchmarks.second_moment --seeds 5 --out benchmarks/results/second_moment.json

A moment that keeps the share beta of itself moves by (1 - beta) * (new - old) at a step. Where that is under half the
distance between two codes, nearest rounding takes it back, every step. Two parts:

- freeze: Gaussian gradients that shrink half-way, all of them or those of every second element; the decoded moment of
  the shrunken elements over the exact one, by beta.
- training: AdamW at beta2 = 0.999 on the example's GPT (text) and a small convolutional net (scikit-learn's digits),
  and AdEMAMix with its slow first moment (beta3 = 0.9999) on the text; with data that stay as they are or shift in
  mid-run. Every variant sees the same initial weights and batches at one seed. Also the second moment of one large
  matrix over the exact one of the same gradients.

Writes the numbers as JSON after every run, and a picture beside it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import pydoc_data.topics
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

import torch_bnb as bnb

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from byte_gpt import ByteGPT, standard_library_text

from benchmarks.second_moment_report import WINDOW, draw, show, summarise

BETAS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
ROUNDINGS = ("nearest", "stochastic")
SHRINK = ((1, 0.7), (2, 0.7), (2, 0.1))  # gradients of every n-th element, and what they shrink to
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"optim_bits": 32},
    "8-bit nearest": {"optim_bits": 8, "state_rounding": "nearest"},
    "8-bit stochastic": {"optim_bits": 8, "state_rounding": "stochastic"},
}
Batch = tuple[Tensor, Tensor]


def freeze(state: str, beta: float, every: int, scale: float, rounding: str) -> dict[str, Any]:
    """The mean of a decoded moment over that of the exact one, 3 / (1 - beta) steps after the gradients of every
    `every`-th element have shrunk to `scale`.
    """
    torch.manual_seed(0)
    p = torch.zeros(4096, requires_grad=True)
    betas = (beta, 0.9) if state == "exp_avg" else (0.9, beta)
    optimizer = bnb.optim.Adam([p], lr=0.0, betas=betas, optim_bits=8, state_rounding=rounding)
    phase = round(3 / (1 - beta))
    exact = torch.zeros(4096, dtype=torch.float64)
    for step in range(2 * phase):
        p.grad = torch.randn(4096) + (state == "exp_avg")
        if step >= phase:
            p.grad[::every] *= scale
        optimizer.step()
        exact.lerp_(p.grad.double() if state == "exp_avg" else p.grad.double().square(), 1 - beta)
    decoded = decode(optimizer.state[p], state).double()
    ratio = (decoded[::every].mean() / exact[::every].mean()).item()
    return {"state": state, "beta": beta, "every": every, "scale": scale, "rounding": rounding, "ratio": ratio}


def decode(state: dict[str, Any], name: str) -> Tensor:
    """A state in float32, however it is kept."""
    if name in state:
        return state[name]
    return bnb.codec.dequantize_blockwise(state[f"{name}_codes"], state[f"{name}_absmax"], signed=name == "exp_avg")


class Text:
    """The example's GPT, small. The shift: from the standard library's sources to the prose of Python's manual."""

    optimizer: type[torch.optim.Optimizer] = bnb.optim.AdamW
    watched = "blocks.0.up.weight"

    def __init__(self) -> None:
        prose = "".join(pydoc_data.topics.topics.values()).encode()
        self.texts = [standard_library_text(), torch.frombuffer(bytearray(prose), dtype=torch.uint8)]

    def model(self) -> nn.Module:
        """Untrained."""
        return ByteGPT(width=64, layers=2, heads=4, length=64)

    def windows(self, domain: int, count: int, training: bool, generator: torch.Generator) -> Batch:
        """Random windows and their targets, one byte later."""
        text = self.texts[domain]
        split = int(0.9 * len(text))
        part = text[:split] if training else text[split:]
        starts = torch.randint(len(part) - 65, (count, 1), generator=generator)
        windows = part[starts + torch.arange(65)].long()
        return windows[:, :-1], windows[:, 1:]

    def batch(self, domain: int, generator: torch.Generator) -> Batch:
        """For training, of the data before (0) or after (1) the shift."""
        return self.windows(domain, 8, True, generator)

    def validation(self, domain: int) -> Iterator[Batch]:
        """Always the same, from data that are not trained on."""
        generator = torch.Generator().manual_seed(0)
        return (self.windows(domain, 64, False, generator) for _ in range(8))


class TextSlowly(Text):
    """The same with a slow first moment."""

    optimizer = bnb.optim.AdEMAMix


class Digits:
    """A small convolutional net. The shift: the images' negatives, lying on their side."""

    optimizer = bnb.optim.AdamW
    watched = "5.weight"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        upright = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
        order = torch.randperm(len(upright), generator=torch.Generator().manual_seed(0))
        self.images, self.labels = [upright, 1 - upright.mT], torch.tensor(data.target)
        self.training, self.testing = order[:1400], order[1400:]

    def model(self) -> nn.Module:
        """Untrained."""
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Flatten(), nn.Linear(64 * 16, 64), nn.GELU(), nn.Linear(64, 10),
        )  # fmt: skip

    def batch(self, domain: int, generator: torch.Generator) -> Batch:
        """For training, of the data before (0) or after (1) the shift."""
        chosen = self.training[torch.randint(len(self.training), (32,), generator=generator)]
        # Noise, or 1400 images would be learnt by heart and all gradients vanish.
        images = self.images[domain][chosen]
        return images + 0.5 * torch.randn(images.shape, generator=generator), self.labels[chosen]

    def validation(self, domain: int) -> Iterator[Batch]:
        """Always the same, from data that are not trained on."""
        generator = torch.Generator().manual_seed(0)
        images = self.images[domain][self.testing]
        for _ in range(8):
            yield images + 0.5 * torch.randn(images.shape, generator=generator), self.labels[self.testing]


TASKS = {"text": Text, "text, AdEMAMix": TextSlowly, "digits": Digits}


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats."""
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def train(task: str, shifts: bool, variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One training."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    source = TASKS[task]()
    model = source.model()
    bnb.optim.GlobalOptimManager.get_instance().register_parameters(model)  # embeddings keep 32-bit state
    optimizer = source.optimizer(model.parameters(), lr=1e-3, min_8bit_size=256, **VARIANTS[variant])
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    large = model.get_parameter(source.watched)
    exact, generator = torch.zeros_like(large), torch.Generator().manual_seed(seed)
    losses, ratios = [], []
    for step in range(steps):
        domain = int(shifts and step >= steps // 2)
        optimizer.zero_grad()
        loss = loss_of(model, source.batch(domain, generator))
        loss.backward()
        optimizer.step()
        warmup.step()
        losses.append(loss.item())
        exact.lerp_(large.grad.square(), 1 - 0.999)
        if (step + 1) % WINDOW == 0:
            ratios.append((decode(optimizer.state[large], "exp_avg_sq").sum() / exact.sum()).item())
    with torch.no_grad():
        final = statistics.mean(loss_of(model, batch).item() for batch in source.validation(domain))
    curve = [statistics.mean(losses[i : i + WINDOW]) for i in range(0, steps, WINDOW)]
    named = {"task": task, "shifts": shifts, "variant": variant, "seed": seed}
    return {**named, "validation loss": final, "curve": curve, "second moment ratio": ratios}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind (default 5)")
    parser.add_argument("--steps", type=int, default=3000, help="steps of each training (default 3000)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes, one thread each (default: cores)"
    )
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS, help="decays whose freeze is measured")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="default all")
    parser.add_argument(
        "--out", type=Path, default=Path("results/second_moment.json"), help="the picture lies beside it"
    )
    args = parser.parse_args()
    if args.seeds < 1 or args.steps < 2 * WINDOW or args.steps % WINDOW or args.workers < 1:
        parser.error(
            f"--seeds {args.seeds} --steps {args.steps} --workers {args.workers}: expected at least 1 seed, 1 worker "
            f"and {2 * WINDOW} steps or more in multiples of {WINDOW}"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    record: dict[str, Any] = {**machine, "steps": args.steps, "freeze": [], "runs": [], "summary": []}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    context = multiprocessing.get_context("spawn")
    with Progress(*columns) as progress, ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        jobs: dict[Future, str] = {}
        for state in ("exp_avg_sq", "exp_avg"):
            for beta in args.betas:
                for shrink in SHRINK:
                    for rounding in ROUNDINGS:
                        jobs[pool.submit(freeze, state, beta, *shrink, rounding)] = "freeze"
        for seed in range(args.seeds):
            for task in args.tasks:
                for shifts in (False, True):
                    for variant in VARIANTS:
                        jobs[pool.submit(train, task, shifts, variant, seed, args.steps)] = "runs"
        bar = progress.add_task("freeze, then trainings", total=len(jobs))
        for job in as_completed(jobs):
            record[jobs[job]].append(job.result())
            record["freeze"].sort(key=lambda row: list(row.values())[:-1])
            record["runs"].sort(
                key=lambda run: (run["task"], run["shifts"], list(VARIANTS).index(run["variant"]), run["seed"])
            )
            record["summary"] = summarise(record["runs"])
            args.out.write_text(json.dumps(record) + "\n")
            progress.advance(bar)
    show(record, Console())
    draw(record, args.out.with_suffix(".png"))
    print(f"numbers: {args.out}   picture: {args.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
