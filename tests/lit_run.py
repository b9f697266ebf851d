"""Trains under a strategy in processes of its own: uninterrupted, and as two runs of which the second resumes.

    python tests/lit_run.py STRATEGY DEVICES FOLDER [CHECKPOINT]

Lightning starts the other processes by running this file again. Each writes what it found to FOLDER/PART/found0.pt, ...
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import processes
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lit import QUIET, Bare
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader

from lightning_bnb import EightBitOptimizer, OptimizerStateMonitor, optim_overrides
from torch_bnb.optim import GlobalOptimManager

ROWS = 51  # of the head: no two processes have as many of them
EPOCHS = 4


@optim_overrides({"head.bias": {"lr": 0.01}})
class Model(Bare):
    """Rows of whole blocks, so that one process and many give the same bits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Embedding(ROWS, 256), nn.Linear(256, ROWS)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Sharded(Model):
    def configure_model(self):
        if not isinstance(self.head, FSDPModule):
            for layer in (self.embed, self.head):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class FSDPOnCPU(FSDPStrategy):
    """Lightning and torch want a GPU for FSDP1 unless the CPU is asked for by name. Saves sharded checkpoints."""

    def __init__(self):
        super().__init__(state_dict_type="sharded")

    def _setup_model(self, model):
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def overrides(strategy):
    second = strategy == "ddp-disagreeing" and os.environ.get("LOCAL_RANK") == "1"
    return {"embed.weight": {"optim_bits": 8}, "head.weight": {"betas": (0.5, 0.95) if second else (0.8, 0.95)}}


class Found(pl.Callback):
    """Whole weights and states when the first step after a (re)start is about to be made, and at the end."""

    def __init__(self, folder):
        self.folder, self.start = folder, None

    def on_train_start(self, trainer, pl_module):
        self.start = whole(trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        found = {"start": self.start, "end": whole(trainer, pl_module), "world": trainer.world_size}
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(found, self.folder / f"found{trainer.global_rank}.pt")


def full(value):
    return value.full_tensor().clone() if hasattr(value, "full_tensor") else torch.as_tensor(value).clone()


def whole(trainer, pl_module):
    (optimizer,) = trainer.optimizers
    names = {id(p): name for name, p in pl_module.named_parameters()}
    return {
        "weights": {name: full(p.detach()) for name, p in pl_module.named_parameters()},
        "state": {names[id(p)]: {k: full(v) for k, v in state.items()} for p, state in optimizer.state.items()},
        "explained": {
            row.name: (row.shape, row.bits, row.lr) for row in GlobalOptimManager.get_instance().explain(optimizer)
        },
    }


def train(strategy, devices, folder, epochs, ckpt_path=None):
    sharded, hints = strategy.startswith("fsdp2"), overrides(strategy)
    torch.manual_seed(0)
    options = {**QUIET, "enable_checkpointing": True, "max_epochs": epochs, "default_root_dir": folder}
    if sharded:
        strategy = ModelParallelStrategy(
            data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=strategy == "fsdp2-sharded"
        )
    elif strategy == "fsdp1":
        strategy = FSDPOnCPU()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if strategy == "ddp-disagreeing" else strategy,
        use_distributed_sampler=False,  # every process sees the same batch, so that their number changes nothing
        callbacks=[EightBitOptimizer(overrides=hints), OptimizerStateMonitor(3), Found(folder)],
        **{**options, "logger": pl.loggers.CSVLogger(folder)},
    )
    module = Sharded() if sharded else Model()
    trainer.fit(module, DataLoader(torch.arange(48), batch_size=16), ckpt_path=ckpt_path, weights_only=True)
    return trainer.checkpoint_callback.best_model_path


def main(strategy, devices, folder, ckpt_path=None):
    if ckpt_path is None:
        if strategy != "ddp_spawn":  # whose processes take long to start
            train(strategy, devices, folder / "whole", EPOCHS)
        ckpt_path = train(strategy, devices, folder / "part", EPOCHS // 2)
    train(strategy, devices, folder / "resumed", EPOCHS, ckpt_path)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
    processes.leave()
