"""What is planned is what is there after a step."""

import pytest
import torch
from cases import CASES
from model import Model, train
from torch import nn

import torch_bnb as bnb
from torch_bnb import OverrideError
from torch_bnb.optim import SGD, AdamW
from torch_bnb.overrides import registry

OPTIONS = [
    {},
    {"percentile_clipping": 50},
    {"block_wise": False},
    {"block_grid": "rows", "min_8bit_size": 0},
    {"state_device": "cpu", "percentile_clipping": 50},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("name", CASES)
def test_what_is_planned_is_what_is_measured(name, bits, options):
    case = CASES[name]
    options = {**case.configs[-1], "optim_bits": bits, **options}
    model = torch.nn.Sequential(torch.nn.Linear(70, 80), torch.nn.Linear(80, 3))
    model[0].bias.requires_grad_(False)
    planned = bnb.plan(model, case.optimizer, **options).total
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = case.optimizer(trained, lr=case.lr, **options)
    before = bnb.report(optimizer).total
    assert before.state == before.gradient == 0
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    measured = bnb.report(optimizer).total
    assert planned.state == planned.planned == before.planned == measured.planned == measured.state
    assert planned.gradient == measured.gradient
    in_bytes = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))
    assert measured.state == in_bytes
    norms = [s["grad_norms"].nbytes for s in optimizer.state.values() if "grad_norms" in s]
    assert measured.state_on_host == (in_bytes - sum(norms) if "state_device" in options else 0)
    assert {8: measured.state_8bit, 32: measured.state_32bit}[bits] == measured.state


class Mine(bnb.optim.AdamW):
    def __init__(self, params, lr=0.5, **others):
        super().__init__(params, lr=lr, **others)


class Fixed(bnb.optim.AdamW):
    def __init__(self, params):
        super().__init__(params, lr=0.25)


class PassedOn(bnb.optim.AdamW):
    def __init__(self, *args, **others):
        super().__init__(*args, **others)


class Variant(bnb.optim.AdamW32bit):
    pass


@pytest.mark.parametrize(
    ("optimizer", "bits"),
    [(Mine, 8), (PassedOn, 8), (Fixed, 32), (Variant, 32), (bnb.optim.PagedAdamW, 8), (bnb.optim.PagedAdam8bit, 8)],
)
def test_eight_bits_are_planned_where_they_may_be_asked_for(optimizer, bits):
    (row, _) = bnb.plan(torch.nn.Linear(128, 128), optimizer).rows
    assert row.bits == bits


def test_a_subclass_says_what_it_takes():
    def takes(optimizer):
        return list(optimizer.__signature__.parameters)

    assert takes(Mine)[:3] == ["params", "lr", "betas"] and {"eps", "optim_bits", "capturable"} < set(takes(Mine))
    assert takes(Fixed) == ["params"]
    assert takes(PassedOn) == takes(bnb.optim.AdamW)
    assert takes(Variant) == takes(bnb.optim.AdamW32bit)
    parameter = torch.nn.Parameter(torch.ones(3))
    for optimizer in (Mine, PassedOn, Variant):
        options = {key: value for key, value in optimizer([parameter]).defaults.items() if key in takes(optimizer)}
        assert optimizer([parameter], **options).defaults["lr"] == optimizer([parameter]).defaults["lr"]


@pytest.mark.parametrize("optim_bits", [8, 32])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("known", [True, False])
def test_the_plan_is_what_is_measured(manager, optim_bits, device, known):
    with torch.device(device):
        planned = Model()
    model = Model()
    for m in (planned, model):
        if known:
            manager.register_parameters(m)
        manager.override_named(m, {"blocks.0.*": {"optim_bits": 8, "min_8bit_size": 1}})
    plan = bnb.plan(planned, AdamW, optim_bits, lr=0.5)
    optimizer = AdamW(model.parameters(), optim_bits=optim_bits)
    train(model, optimizer)
    report = bnb.report(optimizer)
    assert plan.total == report.total
    assert [row.state for row in plan.rows] == [row.state for row in report.rows]
    assert plan.total.state_32bit == 8 * sum(p.numel() for p in model.parameters())
    if device == "meta":
        assert all(p.is_meta for p in planned.parameters())


def test_frozen_parameters_that_an_optimizer_holds_take_no_state(manager):
    model = Model()
    manager.register_parameters(model)
    model.embed.requires_grad_(False)
    optimizer = AdamW(model.parameters(), optim_bits=8)
    expected, seen = bnb.plan(model, "adamw8bit").total, bnb.report(optimizer)
    assert (seen.total.planned, seen.total.state_32bit) == (expected.state, expected.state_32bit)
    assert seen.embedding_bytes == 0 and len(seen.rows) == len(list(model.parameters()))


def test_a_plan_takes_patterns_and_options_and_leaves_no_trace(manager):
    model = Model()
    model.head.requires_grad_(False)
    version = registry.version()
    plain, hinted = bnb.plan(model), bnb.plan(model, overrides={nn.Embedding: {"optim_bits": 32}})
    assert hinted.total.state - plain.total.state == 2 * (4 * 6400 - 6400 - 4 * 25)
    assert registry.version() == version and not manager.explain(model)["embed.weight"].overrides
    assert bnb.plan(model, SGD).total.state == 0
    assert bnb.plan(model, SGD, 32, momentum=0.9).total.state == 4 * sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    rows = {row.name: row for row in plain.rows}
    assert rows["head.weight"].bits is None and rows["head.weight"].state == rows["head.weight"].gradient == 0
    with pytest.raises(OverrideError, match="pattern 'nope': Model has no parameter"):
        bnb.plan(model, overrides={"nope": {"lr": 1.0}})


def test_torch_optimizers_are_measured_too():
    p = nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.AdamW([p])
    p.grad = torch.ones(1000)
    optimizer.step()
    assert bnb.report(optimizer).total.state == 8000
    assert bnb.report(optimizer).total.gradient == 4000
