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
        return self.head(hidden) * (1 + self.wide(hidden).sum(-1, keepdim=True))


def start(rank, world, accumulate=1):
    """An Accelerator of this process, which is one of `world`."""
    from accelerate import Accelerator

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return Accelerator(cpu=True, gradient_accumulation_steps=accumulate)


def sharded(rank, world, state_dict_type="SHARDED_STATE_DICT", version=2, use_orig_params=True):
    """The same with FSDP. Accelerate takes its FSDP paths on accelerators only: here they are told that this is one."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    how = {"fsdp_version": version, "state_dict_type": state_dict_type, "auto_wrap_policy": "no_wrap"}
    if version == 1:
        how |= {"use_orig_params": use_orig_params, "sync_module_states": False, "cpu_ram_efficient_loading": False}
    plugin = FullyShardedDataParallelPlugin(**how)
    accelerator = start(rank, world)
    for state in (AcceleratorState, PartialState):
        state._shared_state |= {"fsdp_plugin": plugin, "device": torch.device("cpu")}
        state._shared_state["distributed_type"] = DistributedType.FSDP
    assert accelerator.is_fsdp2 == (version == 2) and accelerator.num_processes == world
    return accelerator


def prepared(accelerator):
    from torch.optim.lr_scheduler import LambdaLR

    from accelerate_bnb import BnbOptimizerPlugin, prepare

    torch.manual_seed(0)
    model = Model()
    plugin = BnbOptimizerPlugin(lr=1e-2, min_8bit_size=512, overrides={"head.bias": {"weight_decay": 0.0}})
    optimizer = plugin.create_optimizer(model)
    scheduler = LambdaLR(optimizer, lambda step: 0.99**step)
    return prepare(accelerator, model, optimizer, scheduler, plugin=plugin)


def train(accelerator, model, optimizer, scheduler, steps, offset=0, clip=1.0):
    for step in steps:
        tokens = (torch.arange(32) + 7 * step + offset) % 131
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(tokens), tokens.roll(1))
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


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


def state_of(accelerator, model, optimizer):
    """Every state of every parameter, gathered, by name."""
    named = dict(accelerator.unwrap_model(model).named_parameters())
    return {
        f"{name}.{key}": whole(torch.as_tensor(value))
        for name, p in named.items()
        for key, value in optimizer.state[p].items()
    }


def fsdp2_until_killed(rank, folder, kind):
    from torch.distributed.tensor import DTensor

    accelerator = sharded(rank, 2, kind)
    model, optimizer, scheduler = prepared(accelerator)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    bnb.verify(model, optimizer)
    train(accelerator, model, optimizer, scheduler, range(3))
    accelerator.save_state(folder / "state")
    saved = {**state_of(accelerator, model, optimizer), **weights(accelerator, model)}
    # Without what depends on the number of processes: the scheduler's pace, and the last bit of a sum of norms.
    train(accelerator, model, optimizer, None, range(3, 6), clip=1e6)
    reference = weights(accelerator, model)
    if rank == 0:
        torch.save((saved, reference), folder / "reference.pt")
    accelerator.wait_for_everyone()
    os.kill(os.getpid(), signal.SIGKILL)


def fsdp2_resumed(rank, folder, kind, world):
    accelerator = sharded(rank, world, kind)
    model, optimizer, _ = prepared(accelerator)
    accelerator.load_state(folder / "state")
    loaded = {**state_of(accelerator, model, optimizer), **weights(accelerator, model)}
    train(accelerator, model, optimizer, None, range(3, 6), clip=1e6)
    rates = {row.name: row.lr for row in bnb.optim.GlobalOptimManager.get_instance().explain(optimizer.optimizer)}
    return loaded, weights(accelerator, model), rates, optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("kind", "worlds"),
    [
        ("SHARDED_STATE_DICT", [1, 3]),
        ("FULL_STATE_DICT", [2]),
        pytest.param("SHARDED_STATE_DICT", [2], marks=pytest.mark.slow),
        pytest.param("FULL_STATE_DICT", [1, 3], marks=pytest.mark.slow),
    ],
)
def test_fsdp2_goes_on_after_a_kill_on_any_number_of_processes(kind, worlds, tmp_path):
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        processes.run(fsdp2_until_killed, 2, tmp_path, tmp_path, kind)
    saved, reference = torch.load(tmp_path / "reference.pt")
    assert saved["body.weight.exp_avg_codes"].dtype == torch.uint8 and "embed.weight.exp_avg" in saved
    for world in worlds:
        (tmp_path / "store").unlink()
        for loaded, resumed, rates, lr in processes.run(fsdp2_resumed, world, tmp_path, tmp_path, kind, world):
            assert equal(loaded, saved), "the state and the weights, code for code"
            if world == 3:  # a third of three equal gradients is not the gradient to the last bit
                for name in reference:
                    torch.testing.assert_close(resumed[name], reference[name], rtol=1e-4, atol=1e-4)
            else:
                assert equal(resumed, reference), world
            assert rates["body.weight"] == pytest.approx(lr / 10)


def disagreeing(rank):
    from accelerate_bnb import BnbOptimizerPlugin, prepare

    model = Model()
    plugin = BnbOptimizerPlugin(overrides={"head.weight": {"optim_bits": 32}} if rank else None)
    try:
        prepare(start(rank, 2), model, plugin.create_optimizer(model), plugin=plugin)
    except ValueError as error:
        return str(error)


def test_processes_under_ddp_that_disagree_are_told_by_prepare(tmp_path):
    for said in processes.run(disagreeing, 2, tmp_path):
        assert "the processes disagree about head.weight: optim_bits=8 and optim_bits=32" in said


def disagreeing_later(rank):
    accelerator = start(rank, 2)
    model, optimizer, _ = prepared(accelerator)
    head = accelerator.unwrap_model(model).head.weight
    if rank:
        bnb.optim.GlobalOptimManager.get_instance().override_config(head, "lr", 0.5)
    train(accelerator, model, optimizer, None, range(1))
    try:
        bnb.check_agreement(optimizer.optimizer, [torch.distributed.group.WORLD])
    except ValueError as error:
        return head.detach().clone(), str(error)


def test_a_late_hint_in_one_process_is_told_only_by_who_asks(tmp_path):
    (here, said), (there, _) = processes.run(disagreeing_later, 2, tmp_path)
    assert not torch.equal(here, there) and "the processes disagree about head.weight: lr=0.01 and lr=0.5" in said


def fsdp1(rank):
    from accelerate_bnb import BnbDummyOptim, BnbOptimizerPlugin, prepare

    accelerator = sharded(rank, 2, version=1)
    torch.manual_seed(0)
    plugin = BnbOptimizerPlugin(lr=1e-2, min_8bit_size=512, overrides={"body.bias": {"weight_decay": 0.5}})
    return accelerator, *prepare(accelerator, Model(), BnbDummyOptim(), plugin=plugin)


def parts(model):
    """What this process holds."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def fsdp1_until_killed(rank, folder):
    accelerator, model, optimizer = fsdp1(rank)
    assert {state["step"] for state in optimizer.state.values()} == {0}, "made for loading, not yet used"
    bnb.verify(model, optimizer)
    train(accelerator, model, optimizer, None, range(3))
    accelerator.save_state(folder / "state")
    train(accelerator, model, optimizer, None, range(3, 6))
    torch.save(parts(model), folder / f"reference{rank}.pt")
    accelerator.wait_for_everyone()
    os.kill(os.getpid(), signal.SIGKILL)


def fsdp1_resumed(rank, folder):
    accelerator, model, optimizer = fsdp1(rank)
    accelerator.load_state(folder / "state")
    loaded = {state["step"] for state in optimizer.state.values()}
    train(accelerator, model, optimizer, None, range(3, 6))
    bits = {8 if "exp_avg_codes" in state else 32 for state in optimizer.state.values()}
    return loaded, bits, parts(model)


def test_fsdp1_goes_on_bit_for_bit_after_a_kill_in_the_form_that_it_can_shard(tmp_path):
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        processes.run(fsdp1_until_killed, 2, tmp_path, tmp_path)
    (tmp_path / "store").unlink()
    for rank, (loaded, bits, resumed) in enumerate(processes.run(fsdp1_resumed, 2, tmp_path, tmp_path)):
        assert loaded == {3} and 8 in bits
        assert equal(resumed, torch.load(tmp_path / f"reference{rank}.pt"))


def reset():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    bnb.optim.GlobalOptimManager.get_instance().initialize()


def refusals(rank):
    """What goes wrong under FSDP, one after the other, and what is said of it."""
    from accelerate_bnb import BnbDummyOptim, BnbOptimizerPlugin, prepare

    said = {}

    def refused(name, *objects, **how):
        try:
            prepare(sharded(rank, 1, **how), *objects, plugin=BnbOptimizerPlugin())
        except (bnb.VerificationError, bnb.OverrideError) as error:
            said[name] = f"{type(error).__name__}: {error}"
        reset()

    with torch.device("meta"):
        meta = Model()
    refused("meta", meta, BnbDummyOptim())

    model = Model()
    optimizer = bnb.optim.AdamW32bit(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = optimizer.state[model.body.weight]["exp_avg"].clone()
    optimizer.zero_grad()
    model, wrapped = prepare(sharded(rank, 1), model, optimizer, plugin=BnbOptimizerPlugin())
    said["state before"] = torch.equal(whole(wrapped.optimizer.state[model.body.weight]["exp_avg"]), kept)
    reset()

    model = Model()
    optimizer = bnb.optim.AdamW8bit(model.parameters())
    bnb.optim.GlobalOptimManager.get_instance().override_config(model.head.weight, "optim_bits", 32)
    model, wrapped = prepare(sharded(rank, 1), model, optimizer, plugin=BnbOptimizerPlugin())
    rows = bnb.optim.GlobalOptimManager.get_instance().explain(wrapped.optimizer)
    said["hint on a parameter"] = {row.name: row.bits for row in rows}["head.weight"]
    reset()

    model = Model()
    optimizer = bnb.optim.AdamW8bit(model.parameters())
    accelerator = sharded(rank, 1, version=1, use_orig_params=False)
    flat = accelerator.prepare(model)
    try:
        bnb.verify(flat, optimizer)
    except bnb.VerificationError as error:
        said["flat"] = str(error)
    try:
        prepare(accelerator, Model(), BnbDummyOptim())
    except bnb.VerificationError as error:
        said["flat, asked first"] = str(error)
    return said


def test_what_goes_wrong_under_fsdp_is_told_by_its_cause(tmp_path):
    (said,) = processes.run(refusals, 1, tmp_path)
    assert "more than once" in said["meta"] and "meta device" in said["meta"]
    assert said["state before"] is True, "it goes along"
    assert said["hint on a parameter"] == 32, "the model is registered, so the hint is for the place too"
    assert "FSDP1 has flattened them, and nothing would be trained; set fsdp_use_orig_params: true" in said["flat"]
    assert "fsdp_use_orig_params: true" in said["flat, asked first"]
