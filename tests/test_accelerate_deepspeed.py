"""DeepSpeed's ZeRO through Accelerate, with real processes on the CPU. Runs where DeepSpeed is installed
(DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed)."""

import os

import processes
import pytest
import torch
from torch import nn

import torch_bnb as bnb

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


class Model(nn.Module):
    optim_overrides = {"head.weight": {"lr": 1e-3}}

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(100, 64), nn.Linear(64, 128), nn.Linear(128, 100)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)).relu())


def start(rank, world, stage, **config):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DeepSpeedPlugin

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "ACCELERATE_USE_DEEPSPEED": "true"}
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()
    config = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, **config}
    config["zero_optimization"] = {"stage": stage, **config.get("zero_optimization", {})}
    return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))


def prepared(accelerator):
    from accelerate_bnb import BnbDummyOptim, BnbOptimizerPlugin, prepare

    torch.manual_seed(0)
    plugin = BnbOptimizerPlugin(lr=1e-2, overrides={"body.*": {"optim_bits": 32}})
    return prepare(accelerator, Model(), BnbDummyOptim(), plugin=plugin)


def train(accelerator, model, optimizer, steps, rank):
    losses = []
    for step in steps:
        tokens = ((torch.arange(32) + 7 * step + rank) % 100).view(4, 8)
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1).flatten())
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def all_of_it(rank, folder):
    offload = {"offload_optimizer": {"device": "cpu"}}
    seen = {}
    ways = {
        "1": (1, {}),
        "2": (2, {}),
        "3": (3, {}),
        "2 offloaded": (2, {"zero_optimization": offload, "zero_force_ds_cpu_optimizer": False}),
    }
    for name, (stage, config) in ways.items():
        accelerator = start(rank, 2, stage, **config)
        model, optimizer = prepared(accelerator)
        inner = optimizer.optimizer.optimizer
        first = train(accelerator, model, optimizer, range(4), rank)
        accelerator.save_state(folder / name)
        reference = train(accelerator, model, optimizer, range(4, 8), rank)
        # A tensor's state, in the flat form that the engine gives it.
        bits = sorted(8 if "exp_avg_codes" in state else 32 for state in inner.state.values())
        accelerator = start(rank, 2, stage, **config)
        model, optimizer = prepared(accelerator)
        accelerator.load_state(folder / name)
        resumed = train(accelerator, model, optimizer, range(4, 8), rank)
        rates = sorted({(group["lr"], group["optim_bits"]) for group in inner.param_groups})
        seen[name] = (type(inner).__name__, rates, bits, first, reference, resumed)
    refused = {}
    try:
        prepared(start(rank, 2, 2, zero_optimization=offload))
    except bnb.VerificationError as error:
        refused["offload"] = str(error)
    try:
        from accelerate_bnb import prepare

        model = Model()
        prepare(start(rank, 2, 2), model, bnb.optim.AdamW8bit(model.parameters()))
    except bnb.VerificationError as error:
        refused["hints"] = str(error)
    return seen, refused


def test_zero_trains_saves_and_resumes_with_hints_as_groups_and_refuses_what_it_would_lose(tmp_path):
    for seen, refused in processes.run(all_of_it, 2, tmp_path, tmp_path):
        for name, (cls, rates, bits, first, reference, resumed) in seen.items():
            assert cls == "AdamW" and reference[-1] < first[0], name
            assert rates == [(1e-3, 8), (1e-2, 8), (1e-2, 32)], name
            assert 8 in bits and 32 in bits, name
            assert resumed == reference, name
        assert "zero_force_ds_cpu_optimizer: false" in refused["offload"]
        assert "hints about embed.weight, head.weight cannot hold" in refused["hints"]
        assert "torch_bnb.param_groups(model, overrides" in refused["hints"]
