"""Parameters that are sharded over processes: the same bits as alone, checkpoints that move between numbers of them."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import shards
import torch
from cases import CASES
from processes import run
from torch import nn
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import _StridedShard

import torch_bnb as bnb
from torch_bnb.optim import sharding
from torch_bnb.optim import state as storage

pytestmark = pytest.mark.distributed

SOME = ["adamw", "lamb", "sgd"]
"""A rule with two states, one that measures norms, one with states that it may do without."""


@pytest.mark.parametrize("names", [SOME, pytest.param([n for n in CASES if n not in SOME], marks=pytest.mark.slow)])
@pytest.mark.parametrize("processes", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_sharded_replicated_and_alone_are_the_same_bits(names, processes, tmp_path):
    assert run(shards.same_bits, processes, tmp_path, names) == [[]] * processes


def test_hybrid_meshes_and_shards_of_columns_are_the_same_bits(tmp_path):
    for found, kept, warnings in run(shards.hybrid, 4, tmp_path):
        assert found == []
        assert kept == ["exp_avg", "exp_avg_sq", "step"]  # its shards would cut blocks of 300 columns
        assert len(warnings) == 1
        assert "AdamW: 1 parameters keep 32-bit state, because their shards would cut its blocks" in warnings[0]
        assert "group 0, parameter 0, shape (16, 300)" in warnings[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints of two processes, and what became of the training."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, run(shards.save, 2, tmp_path_factory.mktemp("run"), folder)[0]


def equal(one, other):
    assert one.keys() == other.keys()
    return [
        key
        for key, value in one.items()
        if not (torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key])
    ]


@pytest.mark.parametrize("processes", [3, 2, 1])
def test_a_checkpoint_of_two_processes_resumes_on(processes, saved, tmp_path):
    folder, expected = saved
    for kind, result in run(shards.resume, processes, tmp_path, folder)[0].items():
        assert equal(expected["state"], result["state"]) == [], kind
        assert equal(expected["given"], result["given"]) == [], kind
        if processes == 2:
            assert equal(expected["learned"], result["learned"]) == [], kind
        else:  # gradients are means over other shares: the last bit of their sums differs
            for name, value in expected["learned"].items():
                torch.testing.assert_close(result["learned"][name], value, rtol=0, atol=2e-4)


def test_8_bits_into_32_and_back_converts_or_raises(saved, tmp_path):
    folder, expected = saved
    for said, in_32, back, then in run(shards.other_bits, 2, tmp_path, folder):
        assert "Missing key in checkpoint state_dict" in said and "exp_avg" in said
        for (name, key), value in expected["state"].items():
            if key == "exp_avg_codes":
                decoded = storage.decode(value, expected["state"][name, "exp_avg_absmax"], True)
                assert torch.equal(in_32[name, "exp_avg"], decoded)
        assert back.keys() == in_32.keys()
        assert all(torch.equal(torch.as_tensor(back[key]), torch.as_tensor(in_32[key])) for key in in_32)
        assert {"exp_avg_codes", "exp_avg_absmax", "exp_avg_sq_codes"} <= then


def test_how_parts_lie_in_memory_does_not_mix_up_the_norms_of_parameters(tmp_path):
    for wrong, steps in run(shards.own_layouts, 2, tmp_path):
        assert wrong == []
        assert steps == {1}


def test_whole_state_is_not_cut_where_parts_are_no_pieces_in_a_row():
    placements = _StridedShard(0, split_factor=2), Shard(0)  # uneven tensor parallelism within FSDP2
    like = SimpleNamespace(shape=(7, 4), placements=placements, device_mesh=SimpleNamespace(size=lambda dim: 2))
    with pytest.raises(ValueError, match=r"a tensor of shape \(7, 4\) that is whole cannot be cut as .*StridedShard"):
        sharding.take(torch.ones(7, 4), like)


def test_a_checkpoint_of_rows_is_broadcast_to_shards(tmp_path):
    model = shards.net()
    optimizer = shards.adamw(model, block_grid="rows")
    shards.learn(model, optimizer, range(2), seen=(0, 1))
    weights, state = shards.get_state_dict(model, optimizer, options=shards.KINDS["full"])
    torch.save({"model": weights, "optimizer": state}, tmp_path / "rows.pt")
    expected = shards.kept(model, optimizer)
    for found in run(shards.broadcast, 2, tmp_path, str(tmp_path)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(torch.as_tensor(found[key]), torch.as_tensor(expected[key])) for key in expected)


def test_a_checkpoint_with_the_flat_grid_converts_to_shards(tmp_path):
    model = shards.net()
    optimizer = shards.adamw(model)
    shards.learn(model, optimizer, range(2), seen=(0, 1))
    weights, state = shards.get_state_dict(model, optimizer, options=shards.KINDS["full"])
    torch.save({"model": weights, "optimizer": state}, tmp_path / "flat.pt")
    shards.give(model, optimizer, range(2, 3))
    expected = shards.kept(model, optimizer)
    for result in run(shards.grids, 2, tmp_path, tmp_path):
        for (name, key), value in result.items():
            whole_blocks = key.endswith("_codes") and value[0].numel() % 256 == 0
            if whole_blocks:
                assert torch.equal(value, expected[name, key])
            elif key.endswith("_codes"):
                absmax, signed = key.replace("codes", "absmax"), key.startswith("exp_avg_codes")
                ours = storage.decode(value, result[name, absmax], signed)
                theirs = storage.decode(expected[name, key], expected[name, absmax], signed)
                assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_a_checkpoint_of_shards_loads_where_nothing_is_sharded(saved):
    folder, expected = saved
    model = shards.net()
    optimizer = shards.adamw(model, block_grid="rows")
    full = torch.load(folder / "full.pt", weights_only=True)
    options = shards.KINDS["full"]
    shards.set_state_dict(
        model, optimizer, model_state_dict=full["model"], optim_state_dict=full["optimizer"], options=options
    )
    assert equal(expected["state"], shards.kept(model, optimizer)) == []
    shards.give(model, optimizer, range(2, 4))
    assert equal(expected["given"], shards.weights_of(model)) == []


def test_asking_for_the_state_of_a_fresh_optimizer_changes_nothing(tmp_path):
    for results in run(shards.state_without_a_step, 2, tmp_path):
        expected = {"weights": True, "histories": True, "counts": {0}, "as if it had not been": True}
        assert results == [expected, expected]


def test_state_made_before_sharding_goes_along(tmp_path):
    for result in run(shards.swapped_after_a_step, 2, tmp_path):
        assert result == {"same": True, "orphans": 0, "steps": {4}}


def test_ranks_that_disagree_and_impossible_shards_are_errors_on_every_rank(tmp_path):
    for said in run(shards.disagreement, 2, tmp_path):
        overrides, plain_gradient, one_absmax = said
        assert "the processes disagree about head.weight: optim_bits=8 and optim_bits=32" in overrides
        assert "shape (8, 512): it is sharded (a DTensor) and its gradient is a plain tensor" in plain_gradient
        assert "block_wise=False needs the whole tensor, it is sharded" in one_absmax


def test_a_model_partly_sharded_with_hooks_and_accumulation(tmp_path):
    (calls, weights, keys), (_, other, _) = run(shards.mixed_and_hooked, 2, tmp_path)
    assert calls == ["before", "after"] * 3 and "exp_avg_codes" in keys
    assert all(torch.equal(weights[name], other[name]) for name in weights if name.startswith("inner"))


def test_a_process_killed_in_mid_save_leaves_the_checkpoint_before(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=shards.alone_in_a_group, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    workers[1].join(120)
    assert workers[1].exitcode == -signal.SIGKILL
    os.kill(workers[0].pid, signal.SIGKILL)  # it waits for the one that is gone, as a launcher finds it
    workers[0].join()
    assert not (tmp_path / "second" / ".metadata").exists()
    model = shards.net()
    optimizer = shards.adamw(model, block_grid="rows")
    state = shards.read_whole(tmp_path / "first", model, optimizer)
    assert state and all(entry["step"] == 2 for entry in state.values())


def test_one_parameter_in_every_slot_is_an_error():
    weight = nn.Parameter(torch.ones(4))
    optimizer = bnb.optim.AdamW([weight, nn.Parameter(torch.ones(4))])
    optimizer.param_groups[0]["params"] = [weight, weight]  # what a model on the meta device leads to
    with pytest.raises(ValueError, match=r"appears more than once .*meta"):
        optimizer.step()


def test_state_without_a_parameter_is_an_error_when_it_is_saved():
    weight = nn.Parameter(torch.ones(4))
    optimizer = bnb.optim.AdamW([weight])
    weight.grad = torch.ones(4)
    optimizer.step()
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.ones(5))]
    with pytest.raises(ValueError, match=r"AdamW has state of 1 parameters that are in none .* shape \(4,\)"):
        optimizer.state_dict()


def test_fsdp1_resumes_exactly_from_the_portable_form_and_refuses_what_it_cannot_know(tmp_path):
    first, second = run(shards.first_fsdp, 2, tmp_path)
    assert first["sizes"] != second["sizes"] and 0 in first["sizes"]  # uneven, and some have nothing
    for result in (first, second):
        assert result["same"] and "exp_avg_codes" in result["kinds"]
        lamb, unorm, flat = result["said"]
        assert "LAMB needs the whole tensor, FSDP1 gives a shard; use fully_shard" in lamb
        assert "max_unorm needs the whole tensor, FSDP1 gives a shard" in unorm
        assert "none of its parameters has a gradient, but FSDP's flat parameters have" in flat


def test_ddp_and_zero_redundancy_keep_ranks_the_same_and_disagreement_is_an_error(tmp_path):
    (ddp, zero, said), (other_ddp, other_zero, also) = run(shards.data_parallel, 2, tmp_path)
    for name, value in ddp.items():
        assert torch.equal(value, other_ddp[name]) and torch.equal(zero[name], other_zero[name])
        assert torch.equal(value, zero[name])
    assert said == also and "lr=0.1 and lr=0.5" in said
