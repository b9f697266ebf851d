"""Accelerate with real processes over gloo: trained, saved, killed, resumed, compared with a run that went on."""

import os
import signal

import processes
import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessExitedException

import torch_bnb as bnb

pytestmark = pytest.mark.distributed


class Model(nn.Module):
    """Odd shapes: rows that end inside a block, fewer rows than processes, more columns than a block."""

    optim_overrides = {"body.weight": {"lr": 1e-3}}

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(131, 77)
        self.body, self.wide, self.head = nn.Linear(77, 300), nn.Linear(300, 2), nn.Linear(300, 131)

    def forward(self, tokens):
        hidden = self.body(self.embed(tokens)).relu()
        return self.head(hidden) + self.wide(hidden).sum(-1, keepdim=True)


def start(rank, world, accumulate=1):
    """An Accelerator of this process, which is one of `world`."""
    from accelerate import Accelerator

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return Accelerator(cpu=True, gradient_accumulation_steps=accumulate)


def prepared(accelerator):
    from torch.optim.lr_scheduler import LambdaLR

    from accelerate_bnb import BnbOptimizerPlugin, prepare

    torch.manual_seed(0)
    model = Model()
    plugin = BnbOptimizerPlugin(lr=1e-2, min_8bit_size=512, overrides={"head.bias": {"weight_decay": 0.0}})
    optimizer = plugin.create_optimizer(model)
    scheduler = LambdaLR(optimizer, lambda step: 0.99**step)
    return prepare(accelerator, model, optimizer, scheduler, plugin=plugin)


def train(accelerator, model, optimizer, scheduler, steps, offset=0):
    for step in steps:
        tokens = (torch.arange(32) + 7 * step + offset) % 131
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(tokens), tokens.roll(1))
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach().clone()


def weights(accelerator, model):
    return {name: whole(p.detach()) for name, p in accelerator.unwrap_model(model).named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def ddp_until_killed(rank, folder):
    accelerator = start(rank, 2, accumulate=2)
    model, optimizer, scheduler = prepared(accelerator)
    assert accelerator.distributed_type.value == "MULTI_CPU" and accelerator.num_processes == 2
    bnb.verify(model, optimizer)
    train(accelerator, model, optimizer, scheduler, range(6), offset=rank)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.99 ** (3 * 2)), "num_processes times per step"
    accelerator.save_state(folder / "state")
    train(accelerator, model, optimizer, scheduler, range(6, 12), offset=rank)
    torch.save(weights(accelerator, model), folder / f"reference{rank}.pt")
    accelerator.wait_for_everyone()
    os.kill(os.getpid(), signal.SIGKILL)


def ddp_resumed(rank, folder):
    accelerator = start(rank, 2, accumulate=2)
    model, optimizer, scheduler = prepared(accelerator)
    accelerator.load_state(folder / "state")
    named = dict(accelerator.unwrap_model(model).named_parameters())
    bits = {name: 8 if "exp_avg_codes" in optimizer.state[p] else 32 for name, p in named.items()}
    train(accelerator, model, optimizer, scheduler, range(6, 12), offset=rank)
    return bits, weights(accelerator, model)


def test_ddp_goes_on_bit_for_bit_after_a_kill(tmp_path):
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        processes.run(ddp_until_killed, 2, tmp_path, tmp_path)
    (tmp_path / "store").unlink()
    results = processes.run(ddp_resumed, 2, tmp_path, tmp_path)
    for rank, (bits, resumed) in enumerate(results):
        assert bits["embed.weight"] == 32 and bits["body.weight"] == bits["head.weight"] == 8
        assert equal(resumed, torch.load(tmp_path / f"reference{rank}.pt"))
    assert equal(results[0][1], results[1][1])
