"""State that is made without a step: everything is as if it had not been."""

import copy

import pytest
import torch
from cases import CASES, CONFIGS
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import torch_bnb as bnb


def as_asked(model, optimizer):
    optimizer.make_state()


def as_a_checkpoint_does(model, optimizer):
    get_optimizer_state_dict(model, optimizer)  # steps with zero gradients at rate 0


WAYS = pytest.mark.parametrize("make", [as_asked, as_a_checkpoint_does])


def start(name, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 70), nn.Linear(70, 3))
    return model, CASES[name].optimizer(model.parameters(), **{"lr": CASES[name].lr, "optim_bits": 8, **options})


def train(model, optimizer, steps=3):
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 70)).square().sum().backward()
        optimizer.step()


def forms(optimizer):
    """What kind of thing each entry of the state is."""
    return [
        {
            key: (value.dtype, value.shape) if isinstance(value, torch.Tensor) else type(value)
            for key, value in s.items()
        }
        for s in optimizer.state.values()
    ]


@WAYS
@pytest.mark.parametrize("common", [{}, {"capturable": True}, {"percentile_clipping": 50}, {"optim_bits": 32}], ids=str)
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_it_is_the_state_of_a_first_step_and_no_step(name, config, common, make):
    (model, optimizer), (other, untouched) = start(name, **config, **common), start(name, **config, **common)
    make(model, optimizer)
    assert len(optimizer.state) == 4 and all(state["step"] == 0 for state in optimizer.state.values())
    assert all(state["grad_norms"].isnan().all() for state in optimizer.state.values() if "grad_norms" in state)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    made = forms(optimizer)
    train(model, optimizer)
    train(other, untouched)
    assert made == forms(untouched)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert all(state["step"] == 3 for state in optimizer.state.values())


@WAYS
@pytest.mark.parametrize("capturable", [False, True])
def test_frozen_parameters_get_none_and_gradients_and_rates_stay(make, capturable):
    model, optimizer = start("adamw", capturable=capturable)
    model[0].weight.requires_grad_(False)
    make(model, optimizer)
    assert list(map(id, optimizer.state)) == [id(p) for p in model.parameters() if p.requires_grad]
    assert all(p.grad is None for p in model.parameters())
    assert optimizer.param_groups[0]["lr"] == CASES["adamw"].lr


def test_empty_parameters_get_none():
    """FSDP1's never step, and it refuses to save counts that differ among processes."""
    params = [nn.Parameter(torch.ones(0, 3)), nn.Parameter(torch.ones(3))]
    optimizer = bnb.optim.SGD(params, lr=0.1)
    optimizer.make_state()
    assert list(optimizer.state) == params[1:]


@pytest.mark.parametrize("capturable", [False, True])
def test_state_that_is_there_stays_and_gradients_are_not_used(capturable):
    model, optimizer = start("sgd", momentum=0.9, capturable=capturable)
    late = model[0].weight
    model(torch.randn(5, 70)).square().sum().backward()
    late.grad, gradient = None, late.grad
    optimizer.step()
    late.grad = gradient
    weights = [p.detach().clone() for p in model.parameters()]
    before = copy.deepcopy({p: dict(state) for p, state in optimizer.state.items()})
    optimizer.make_state()
    made = optimizer.state.pop(late)
    assert made["step"] == 0 and not made["momentum_buffer_absmax"].any()
    for state, kept in zip(optimizer.state.values(), before.values(), strict=True):
        assert state["step"] == kept["step"] == 1
        assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(kept[key])) for key in kept)
    assert all(map(torch.equal, model.parameters(), weights))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, r"parameter 1 of group 0, shape \(3, 4\): its elements share memory"),
        ({"capturable": True, "percentile_clipping": 50}, NotImplementedError, "parameter 0 of group 0: percentile"),
    ],
)
def test_what_could_not_step_is_an_error_and_nothing_is_made(options, error, message):
    params = [nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(4).expand(3, 4))]
    optimizer = bnb.optim.AdamW(params, **options)
    with pytest.raises(error, match=message):
        optimizer.make_state()
    assert not optimizer.state


@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_at_rate_0_counts_where_there_are_gradients_or_steps_before_it(capturable):
    model, optimizer = start("adamw", capturable=capturable)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(state["step"] == 2 for state in optimizer.state.values())


def test_a_freed_gradient_is_not_read():
    parameter = nn.Parameter(torch.ones(8))
    optimizer = bnb.optim.AdamW([parameter], lr=0.0)
    parameter.grad = torch.zeros(8)
    parameter.grad.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0, .*its gradient has no memory"):
        optimizer.step()
    assert not optimizer.state
