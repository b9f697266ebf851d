"""`verify`: whether the optimizer that trains is the one that was built; wrong ones are told apart by their cause."""

import pickle

import pytest
import torch
from torch import nn

import torch_bnb as bnb
from torch_bnb.verify import innermost


class Wrapper:
    """A framework's, around an optimizer."""

    def __init__(self, optimizer, **attributes):
        self.optimizer = optimizer
        vars(self).update(attributes)


def model():
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))


def test_an_optimizer_that_holds_everything_passes_also_inside_wrappers_and_with_tied_and_frozen_parameters():
    tied = model()
    tied[1].weight = tied[0].weight
    tied[1].bias.requires_grad_(False)
    optimizer = bnb.optim.AdamW8bit(p for p in tied.parameters() if p.requires_grad)
    bnb.verify(tied, optimizer)
    outer = Wrapper(Wrapper(optimizer))
    bnb.verify(tied, [outer])
    assert innermost(outer) is optimizer
    assert bnb.report(outer).rows == bnb.report(optimizer).rows
    manager = bnb.optim.GlobalOptimManager.get_instance()
    assert manager.explain(outer) == manager.explain(optimizer)


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("deepspeed.ops.adam.cpu_adam", "zero_force_ds_cpu_optimizer: false"),
        ("megatron.core.optimizer", "Megatron-LM builds an optimizer of its own"),
        ("msamp.optim", "use another backend for fp8"),
        ("somewhere", "a framework has replaced it"),
    ],
)
def test_another_librarys_optimizer_in_its_place_is_named_with_what_avoids_it(module, cause):
    net = model()
    replaced = type("DeepSpeedCPUAdam", (torch.optim.Adam,), {"__module__": module})(net.parameters())
    with pytest.raises(bnb.VerificationError, match="none of torch_bnb") as caught:
        bnb.verify(net, replaced)
    assert cause in str(caught.value) and f"{module}.DeepSpeedCPUAdam" in str(caught.value)


def test_declared_hints_of_a_model_that_is_not_registered_are_an_error():
    class Head(nn.Linear):
        optim_overrides = {"weight": {"optim_bits": 32}}

    net = nn.Sequential(nn.Linear(64, 64), Head(64, 64))
    optimizer = bnb.optim.AdamW8bit(net.parameters())
    with pytest.raises(bnb.VerificationError, match="Head declares optim_overrides, which hold for registered models"):
        bnb.verify(net, optimizer)
    bnb.optim.GlobalOptimManager.get_instance().register_parameters(net)
    bnb.verify(net, optimizer)
    assert [place.bits for place in optimizer.configurations()] == [8, 32, 32, 32]


def test_hints_of_a_model_that_was_pickled_and_is_not_registered_are_an_error(manager):
    net = nn.Sequential(nn.Linear(64, 64))
    manager.override_named(net, {"0.weight": {"optim_bits": 32}})
    loaded = pickle.loads(pickle.dumps(net))
    with pytest.raises(bnb.VerificationError, match="Sequential was pickled with overrides, which hold for registered"):
        bnb.verify(loaded, bnb.optim.AdamW8bit(loaded.parameters()))
    manager.register_parameters(loaded)
    bnb.verify(loaded, bnb.optim.AdamW8bit(loaded.parameters()))


def test_parameters_left_out_are_named():
    net = model()
    with pytest.raises(bnb.VerificationError, match=r"lacks 3 of 4 trainable parameters: 0.bias, 1.weight, 1.bias"):
        bnb.verify(net, bnb.optim.AdamW8bit([net[0].weight]))
    first, second = bnb.optim.AdamW8bit(net[0].parameters()), torch.optim.SGD(net[1].parameters(), lr=0.1)
    bnb.verify(net, first, beside=[second])
    bnb.verify(net, [first, bnb.optim.Lion(net[1].parameters())])


def test_one_parameter_in_many_places_is_an_error():
    net = model()
    optimizer = bnb.optim.AdamW8bit(net.parameters())
    optimizer.param_groups[0]["params"] = [net[1].bias] * 4  # as after FSDP2 with a meta model
    with pytest.raises(bnb.VerificationError, match=r"holds 1\.bias more than once: .*meta device"):
        bnb.verify(net, optimizer)


def test_replaced_parameters_are_an_error():
    net = model()
    optimizer = bnb.optim.AdamW8bit(net.parameters())
    net[0].weight = nn.Parameter(torch.zeros(64, 64))
    message = "holds 1 parameters that the model does not have, and lacks 1 of its 4 trainable ones: they were replaced"
    with pytest.raises(bnb.VerificationError, match=message):
        bnb.verify(net, optimizer)


def test_an_optimizer_built_for_a_meta_model_is_an_error():
    with torch.device("meta"):
        net = model()
    optimizer = bnb.optim.AdamW8bit(net.parameters())
    net.to_empty(device="cpu")
    with pytest.raises(bnb.VerificationError, match="while the model was on the meta device"):
        bnb.verify(net, optimizer)


def test_state_of_parameters_that_are_gone_is_an_error():
    net = model()
    optimizer = bnb.optim.AdamW8bit(net.parameters())
    net(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    new = nn.Parameter(net[0].weight.detach().clone())
    net[0].weight = optimizer.param_groups[0]["params"][0] = new
    with pytest.raises(
        bnb.VerificationError, match="has state for 1 parameters that are gone: it had stepped or loaded"
    ):
        bnb.verify(net, optimizer)


def test_a_hint_that_is_lost_is_an_error(manager):
    net = model()
    optimizer = bnb.optim.AdamW8bit(net.parameters())
    manager.register_module_override(net[0], "weight", {"optim_bits": 32})
    before = manager.explain(optimizer)
    bnb.verify(net, optimizer, before)
    replaced = nn.Sequential(nn.Linear(64, 64), net[1])  # a framework's copy of the first layer knows of no hint
    optimizer.param_groups[0]["params"] = list(replaced.parameters())
    with pytest.raises(bnb.VerificationError, match=r"hints no longer hold for weight \(optim_bits=32\)"):
        bnb.verify(replaced, optimizer, before)


def test_under_an_engine_that_flattens_groups_hints_are_to_be_groups(manager):
    net = model()
    optimizer = bnb.optim.AdamW8bit(net.parameters())
    before = manager.explain(optimizer)
    zero = Wrapper(optimizer, bit16_groups=[list(net.parameters())])
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in net.parameters()]))
    optimizer.param_groups[0]["params"] = [flat]
    bnb.verify(net, Wrapper(zero), before)
    zero.bit16_groups[0].pop()
    with pytest.raises(bnb.VerificationError, match=r"lacks 1 of 4 trainable parameters: 1\.bias"):
        bnb.verify(net, Wrapper(zero), before)
    hinted = bnb.optim.AdamW8bit(net.parameters())
    manager.override_config(net[0].weight, "optim_bits", 32)
    before = manager.explain(hinted)
    zero = Wrapper(hinted, bit16_groups=[list(net.parameters())])
    with pytest.raises(bnb.VerificationError, match=r"torch_bnb.param_groups\(model, overrides"):
        bnb.verify(net, zero, before)
