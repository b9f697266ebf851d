"""A byte-level GPT trained from a YAML file, 8-bit optimizer and hints included.

    python examples/lightning_cli/main.py fit --config examples/lightning_cli/config.yaml

Everything in the file can be said on the command line, too:

    ... --trainer.max_epochs=2 --optimizer=torch_bnb.optim.Lion8bit --optimizer.lr=1e-4
    ... --print_config > mine.yaml
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
from byte_gpt import ByteGPT, Windows, standard_library_text


class LitGPT(pl.LightningModule):
    """Configures no optimizer: the file says which.

    Args:
        width: Of the residual stream.
        layers: Number of blocks.
        heads: Attention heads in each.
    """

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.gpt = ByteGPT(width, layers, heads)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        tokens, targets = batch
        loss = F.cross_entropy(self.gpt(tokens).flatten(0, 1), targets.flatten())
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        tokens, targets = batch
        self.log("val_loss", F.cross_entropy(self.gpt(tokens).flatten(0, 1), targets.flatten()), prog_bar=True)


class StandardLibrary(pl.LightningDataModule):
    """The source text of Python's standard library.

    Args:
        batch_size: Windows in a batch.
        batches: Batches in an epoch.
        length: Bytes in a window.
    """

    def __init__(self, batch_size: int = 16, batches: int = 100, length: int = 128) -> None:
        super().__init__()
        self.batch_size, self.batches, self.length = batch_size, batches, length

    def setup(self, stage: str) -> None:
        text = standard_library_text()
        self.training, self.validation = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]

    def train_dataloader(self) -> DataLoader:
        windows = Windows(self.training, self.length, self.batches * self.batch_size, seed=0)
        return DataLoader(windows, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Windows(self.validation, self.length, 8 * self.batch_size, seed=1), self.batch_size)


if __name__ == "__main__":
    LightningCLI(LitGPT, StandardLibrary, seed_everything_default=0)
