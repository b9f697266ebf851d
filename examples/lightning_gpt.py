"""Trains a byte-level GPT with Lightning, with torch's AdamW and with 8-bit AdamW, and shows them beside each other.

    python examples/lightning_gpt.py --out results/demo --seeds 1
    python examples/lightning_gpt.py --devices 2 --strategy ddp --precision bf16-mixed

The one difference between the two runs is ``callbacks=[EightBitOptimizer()]``. Writes demo.json and demo.png.
"""

import argparse
import json
import logging
import platform
import statistics
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from byte_gpt import ByteGPT, Windows, standard_library_text
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer, optim_overrides

NAMES = {"fp32": "torch AdamW", "8bit": "8-bit AdamW"}


@optim_overrides({"gpt.token.weight": {"optim_bits": 32}, "gpt.position.weight": {"optim_bits": 32}})
class LitGPT(pl.LightningModule):
    """The hint above keeps the embeddings' state at 32 bits, whatever the optimizer does with the rest."""

    def __init__(self, steps: int, lr: float = 1e-3) -> None:
        super().__init__()
        self.gpt, self.steps, self.lr = ByteGPT(), steps, lr

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, targets = batch
        return F.cross_entropy(self.gpt(tokens).flatten(0, 1), targets.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1)
        warmup = max(1, self.steps // 20)

        def schedule(step: int) -> float:
            return (step + 1) / warmup if step < warmup else 1 - 0.9 * (step - warmup) / (self.steps - warmup)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Recorder(pl.Callback):
    """Losses, step times and the measured bytes of optimizer state."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.state_bytes = 0

    def on_train_batch_start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: dict, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.state_bytes = bnb.report(trainer.optimizers[0]).total.state


def train(kind: str, seed: int, steps: int, text: Tensor, **trainer_options: object) -> dict:
    """One run: the same model, data and order for both kinds. With several devices each sees its share of a batch."""
    pl.seed_everything(seed, verbose=False)
    devices = trainer_options["devices"]
    split, batch = int(0.9 * len(text)), 16 // devices
    module, recorder = LitGPT(steps), Recorder()
    length = module.gpt.position.num_embeddings
    training = DataLoader(Windows(text[:split], length, steps * batch * devices, seed), batch_size=batch)
    validation = DataLoader(Windows(text[split:], length, 16 * batch, seed=0), batch_size=batch)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[recorder, *([EightBitOptimizer()] if kind == "8bit" else [])],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **trainer_options,
    )
    trainer.fit(module, training, validation)
    return {
        "optimizer": kind,
        "seed": seed,
        "training loss": statistics.mean(recorder.losses[-20:]),
        "validation loss": float(trainer.callback_metrics["val_loss"]),
        "state bytes": recorder.state_bytes,
        "parameters": sum(p.numel() for p in module.parameters()),
        "ms per step": 1e3 * statistics.median(recorder.seconds),
        "losses": recorder.losses,
    }


def show(runs: list[dict], console: Console) -> None:
    table = Table(title="Byte-level GPT on the standard library's source text")
    columns = ["optimizer", "seed", "train loss", "val loss", "state", "B/param", "ms/step"]
    for column in columns:
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for run in runs:
        table.add_row(
            NAMES[run["optimizer"]],
            str(run["seed"]),
            f"{run['training loss']:.4f}",
            f"{run['validation loss']:.4f}",
            f"{run['state bytes'] / 1e6:.2f} MB",
            f"{run['state bytes'] / run['parameters']:.2f}",
            f"{run['ms per step']:.0f}",
        )
    console.print(table)
    seeds = sorted({run["seed"] for run in runs})
    if len(seeds) > 1:
        loss = {(run["optimizer"], run["seed"]): run["validation loss"] for run in runs}
        between_optimizers = [abs(loss["8bit", seed] - loss["fp32", seed]) for seed in seeds]
        spread = {kind: [loss[kind, seed] for seed in seeds] for kind in NAMES}
        for kind, values in spread.items():
            console.print(
                f"{NAMES[kind]}: validation loss {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}, "
                f"from {min(values):.4f} to {max(values):.4f} over {len(seeds)} seeds"
            )
        console.print(
            f"Two seeds of one optimizer differ by up to {max(max(v) - min(v) for v in spread.values()):.4f}; "
            f"the two optimizers differ by up to {max(between_optimizers):.4f} at one seed."
        )


def draw(runs: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colors, styles = {"fp32": "tab:blue", "8bit": "tab:orange"}, {"fp32": "-", "8bit": "--"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=[3, 1], layout="constrained")
    for run in runs:
        losses = torch.tensor(run["losses"])
        smooth = F.avg_pool1d(losses[None], min(10, len(losses)), stride=1)[0]
        first = run is next(r for r in runs if r["optimizer"] == run["optimizer"])
        style = {"color": colors[run["optimizer"]], "linestyle": styles[run["optimizer"]]}
        left.plot(smooth, label=NAMES[run["optimizer"]] if first else None, **style)
    left.set(xlabel="step", ylabel="training loss (nats per byte)", title="Training loss, mean of 10 steps")
    left.legend()
    for kind, color in colors.items():
        run = next(r for r in runs if r["optimizer"] == kind)
        bar = right.bar(kind.replace("8bit", "8-bit"), run["state bytes"] / 1e6, color=color)
        right.bar_label(bar, fmt="%.2f MB")
    right.set(ylabel="MB", title="Optimizer state")
    right.margins(y=0.1)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/demo"), help="folder for demo.json and demo.png")
    parser.add_argument("--seeds", type=int, default=1, help="repeat both runs with this many seeds (default 1)")
    parser.add_argument("--steps", type=int, default=400, help="steps of each run (default 400)")
    parser.add_argument("--accelerator", default="cpu", help="cpu, gpu or auto (default cpu)")
    parser.add_argument("--devices", type=int, default=1, help="processes, one for each device (default 1)")
    parser.add_argument("--strategy", default="auto", help="auto, ddp, fsdp, ... as Lightning names them")
    parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, bf16-true, ...")
    args = parser.parse_args()
    if "spawn" in args.strategy:
        parser.error(f"--strategy {args.strategy}: its processes would keep the losses that this one shows; use ddp")
    if args.devices not in (1, 2, 4, 8, 16):
        parser.error(f"--devices {args.devices}: expected a divisor of the batch of 16")
    if args.seeds < 1 or args.steps < 20:
        parser.error(f"--seeds {args.seeds} --steps {args.steps}: expected at least 1 seed and 20 steps")

    warnings.filterwarnings("ignore", message=".*does not have many workers.*|.*LeafSpec.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    first = rank_zero_only.rank == 0  # for several devices, Lightning starts this file again for each of the others
    console, text = Console(quiet=not first), standard_library_text()
    options = {key: getattr(args, key) for key in ("accelerator", "devices", "strategy", "precision")}
    runs = []
    for seed in range(args.seeds):
        for kind, name in NAMES.items():
            console.rule(f"{name}, seed {seed}")
            runs.append(train(kind, seed, args.steps, text, **options))
    if not first:
        return
    show(runs, console)
    args.out.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    record = {**machine, "threads": torch.get_num_threads(), "steps": args.steps, **options, "runs": runs}
    (args.out / "demo.json").write_text(json.dumps(record) + "\n")
    draw(runs, args.out / "demo.png")
    console.print(f"Picture: {args.out / 'demo.png'}   numbers: {args.out / 'demo.json'}")


if __name__ == "__main__":
    main()
