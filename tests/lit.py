"""A small LightningModule, its data and a quiet fit, for every test of the Lightning plugin."""

import csv

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Bare(pl.LightningModule):
    """Everything but `configure_optimizers`."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(100, 64), nn.Linear(64, 100)

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self.head(self.embed(batch)), batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val", nn.functional.cross_entropy(self.head(self.embed(batch)), batch))


class Model(Bare):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


def seeded(cls, *args, **kwargs):
    """The same module every time."""
    torch.manual_seed(1)
    return cls(*args, **kwargs)


def data(n=32):
    return DataLoader(torch.arange(n) % 100, batch_size=8)


def fit(module, *callbacks, epochs=1, ckpt_path=None, **options):
    options = {"max_epochs": epochs, "accelerator": "cpu", **QUIET, **options}
    trainer = pl.Trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return trainer


def bits(trainer, parameter, index=0):
    """Of a parameter's state."""
    return 8 if "exp_avg_codes" in trainer.optimizers[index].state[parameter] else 32


def same_weights(one, other):
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    return bool(pairs) and all(torch.equal(p, q) for p, q in pairs)


def csv_columns(logger):
    """By key, (step, value) pairs as they are in the file."""
    logger.save()
    columns = {}
    with open(f"{logger.log_dir}/metrics.csv") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value and key != "step":
                    columns.setdefault(key, []).append((int(row["step"]), float(value)))
    return columns
