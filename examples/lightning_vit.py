"""Fine-tunes a small vision transformer on scikit-learn's handwritten digits, in 32 and in 8 bits.

    python examples/lightning_vit.py

The transformer is made of ``torch.nn.TransformerEncoder`` with the names and proportions of a ViT, at a size for a CPU;
its weights are random where a real fine-tuning would load them. What a fine-tuning says of single parameters, it says
in one place: the layers near the input learn slowest, norms and biases do not decay, tokens keep 32 bits.
"""

import argparse
import logging
import warnings

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer

LAYERS = 4
HINTS = {
    "re:^(class_token|position)": {"optim_bits": 32},
    **{f"encoder.layers.{i}.*": {"lr_scale": 0.75 ** (LAYERS - i)} for i in range(LAYERS)},
    "re:norm|bias": {"weight_decay": 0.0},
}
"""Patterns over the model's names. Of one option the later wins; these speak of different ones."""


class VisionTransformer(nn.Module):
    """Images of 8x8 pixels, (batch, 1, 8, 8) float32, to logits of ten digits: (batch, 10)."""

    def __init__(self, width: int = 96, heads: int = 3, patch: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (8 // patch) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], dim=1) + self.position
        return self.head(self.encoder(tokens)[:, 0])


class Digits(pl.LightningModule, VisionTransformer):
    """The transformer itself is the LightningModule, so that its names are what the patterns see."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, digits = batch
        loss = F.cross_entropy(self(images), digits)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, digits = batch
        self.log("accuracy", (self(images).argmax(1) == digits).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1797 images, a fifth of them for validation."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    whole = TensorDataset(images, torch.tensor(found.target))
    return random_split(whole, [0.8, 0.2], torch.Generator().manual_seed(0))


def train(bits: int, epochs: int) -> tuple[float, float]:
    """Accuracy on what it has not seen, and bytes of optimizer state per parameter."""
    pl.seed_everything(0, verbose=False)
    training, validation = digits()
    batches = DataLoader(training, batch_size=64, shuffle=True, drop_last=True)
    module = Digits(steps=epochs * len(batches))
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[EightBitOptimizer(overrides=HINTS, optim_bits=bits, summary=bits == 8)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, batches, DataLoader(validation, batch_size=256))
    state = bnb.report(trainer.optimizers[0]).total
    return float(trainer.callback_metrics["accuracy"]), 4 * state.state / state.parameter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="of each of the two trainings (default 8)")
    args = parser.parse_args()
    warnings.filterwarnings(
        "ignore", message=".*many workers.*|.*LeafSpec.*|.*stays in 32 bits.*|.*log_every_n_steps.*"
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for bits in (32, 8):
        accuracy, state = train(bits, args.epochs)
        print(f"{bits:2} bits: accuracy {accuracy:.3f}, {state:.2f} bytes of optimizer state per parameter")


if __name__ == "__main__":
    main()
