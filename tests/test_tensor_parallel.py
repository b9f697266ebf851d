"""Tensor parallelism, alone and within FSDP2: the same bits as alone, hints that hold, checkpoints that move."""

import parallel
import pytest
import torch
from parallel import PROCESSES, differences
from processes import run

from torch_bnb.optim import state as storage

pytestmark = pytest.mark.distributed

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("sequence", ["8 bits", "percentile"]),
        ("mesh", ["chance"]),
        *(pytest.param(layout, list(parallel.TRAININGS), marks=slow) for layout in PROCESSES),
    ],
)
def test_training_in_parallel_is_training_alone(layout, names, tmp_path):
    everyones = run(parallel.trained, PROCESSES[layout], tmp_path, layout, names)
    for name in names:
        found = [one[name] for one in everyones]
        for one in found:
            assert one["differences"] == [], name
            assert len(set(one["bytes"])) == 1, one["bytes"]
            kept = [] if name == "32 bits" else ["attention.o.weight, shape (256, 256); up.bias, shape (1024,)"]
            assert [said.partition("short: ")[2] for said in one["said"]] == kept  # and no other parameter
        mean = torch.stack([one["losses"] for one in found]).mean(0)
        torch.testing.assert_close(mean, found[0]["alone"], rtol=0, atol=2e-3)


@slow
def test_a_mesh_dimension_of_one_process_cuts_nothing(tmp_path):
    for found in run(parallel.of_one_process_each, 2, tmp_path):
        assert found == {(2, 1): [], (1, 2): []}


@slow
@pytest.mark.parametrize("layout", ["tensor", "mesh"])
def test_hints_hold_for_what_is_cut_up(layout, tmp_path):
    for rows, still, first, then, steps, sizes in run(parallel.hinted, PROCESSES[layout], tmp_path, layout):
        bits = {name: bits for name, (bits, _, _) in rows.items()}
        overrides = {name: overrides for name, (_, overrides, _) in rows.items() if overrides}
        winners = {name: set(winners.values()) for name, (_, _, winners) in rows.items() if winners}
        norms = [f"{norm}.{part}" for norm in ("before", "between") for part in ("weight", "bias")]
        assert overrides == {
            "embed.weight": {"optim_bits": 32},
            "attention.q.weight": {"optim_bits": 32},
            "attention.k.weight": {"lr": 0.0},
            "down.weight": {"optim_bits": 32},
            "down.bias": {"lr": 0.0},
            "head.weight": {"optim_bits": 32, "betas": (0.8, 0.9)},
            **{name: {"weight_decay": 0.0} for name in norms},
        }
        assert winners == {
            "embed.weight": {"nn.Embedding keeps 32-bit state"},
            "attention.q.weight": {"register_module_override(Linear, 'weight')"},
            "attention.k.weight": {"override_named('*.k.weight')"},
            "down.weight": {"override_config"},
            "down.bias": {"override_config"},
            "head.weight": {"override_config"},
            **{name: {"override_named(LayerNorm)"} for name in norms},
        }
        assert first == bits
        assert {name for name, kept in bits.items() if kept == 8} == {
            "attention.k.weight",
            "attention.v.weight",
            "up.weight",
        }
        assert still == ["attention.k.weight", "down.bias"]
        assert then == {**first, "up.weight": 32, "down.weight": 8}
        assert steps == {3}
        assert len(set(sizes)) == 1, sizes


@pytest.fixture(scope="module", params=["tensor", pytest.param("mesh", marks=slow)])
def saved(request, tmp_path_factory):
    """A layout, a folder with its checkpoints, and what became of the training."""
    layout, folder = request.param, tmp_path_factory.mktemp("saved")
    return layout, folder, run(parallel.save, PROCESSES[layout], tmp_path_factory.mktemp("run"), layout, folder)[0]


@slow
@pytest.mark.parametrize("layout", ["tensor", "mesh"])
def test_a_checkpoint_resumes_in_parallel(layout, saved, tmp_path):
    before, folder, (expected, _, then) = saved
    for found in run(parallel.resume, PROCESSES[layout], tmp_path, layout, folder):
        for kind, (loaded, learned) in found.items():
            assert differences(expected, loaded) == [], kind
            if layout == before:  # elsewhere the sums of a gradient differ in the last bit
                assert differences(then, learned) == [], kind


@pytest.mark.parametrize("kind", ["sharded", "full"])
def test_a_checkpoint_resumes_in_one_process_where_nothing_is_cut_up(kind, saved):
    _, folder, (expected, seen, then) = saved
    model, optimizer = parallel.alone()
    parallel.learn(model, optimizer, range(7, 8))  # all of this must go
    parallel.load_into(model, optimizer, folder, kind)
    assert differences(expected, parallel.everything(model, optimizer)) == []
    parallel.give(model, optimizer, seen)
    assert differences(then, parallel.everything(model, optimizer)) == []


@slow
@pytest.mark.parametrize("layout", PROCESSES)
def test_a_checkpoint_of_one_process_resumes_in_parallel(layout, tmp_path):
    model = parallel.transformer()
    optimizer = parallel.built(model, block_grid="rows")
    parallel.learn(model, optimizer, range(2))
    parallel.write(model, optimizer, tmp_path)
    expected = parallel.everything(model, optimizer)
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):  # shards cut these blocks
        key = "attention.o.weight"
        codes, absmax = (expected.pop((key, f"{name}_{part}")) for part in ("codes", "absmax"))
        expected[key, name] = storage.decode(codes, absmax, signed)
    for found in run(parallel.resume, PROCESSES[layout], tmp_path, layout, tmp_path, ["full"]):
        assert differences(expected, found["full"][0]) == []


@slow
def test_torch_itself_cannot_cut_the_flat_grid_in_columns(tmp_path):
    model = parallel.transformer()
    optimizer = parallel.built(model)
    parallel.learn(model, optimizer, range(1))
    parallel.write(model, optimizer, tmp_path)
    for found in run(parallel.resume, 2, tmp_path, "tensor", tmp_path, ["full"]):
        assert "Dimension out of range" in found["full"]


@slow
@pytest.mark.parametrize("layout", PROCESSES)
def test_state_made_before_a_model_is_cut_up_goes_along(layout, tmp_path):
    for found, steps in run(parallel.cut_after_steps, PROCESSES[layout], tmp_path, layout):
        assert found == []
        assert steps == {3}


@slow
def test_state_of_parts_that_are_cut_again_is_an_error(tmp_path):
    for said in run(parallel.cut_again_after_steps, 4, tmp_path):
        assert "parameter 0 of group 0, shape (64, 256), has state and was replaced by one that is sharded" in said
        assert "shard a model in every way before its optimizer steps" in said


def test_partial_sums_are_added_up_once_by_every_process_however_it_plans(tmp_path):
    for scale, weight in run(parallel.partial_sums, 2, tmp_path):
        assert torch.equal(scale, torch.full((64,), 1 - 3 * 0.5 * 3))
        assert torch.equal(weight, torch.full((3, 64), 1 - 3 * 0.5))
