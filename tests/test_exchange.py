"""State that travels between libraries: real optimizers of torch, bitsandbytes and torchao on both ends."""

import contextlib
import copy
import io
import logging
import subprocess
import sys
import warnings

import pytest
import torch

import torch_bnb as bnb
from torch_bnb.optim.state import asks_for_8bit

with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import bitsandbytes.functional as theirs_functional
    import bitsandbytes.optim as theirs_bnb
    import torchao.optim as torchao

    logging.disable(logging.NOTSET)

SHAPES = [(64, 96), (300,), (5001,)]  # in 8 bits; too small for it; with a tail


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """torchao compiles its step; the same arithmetic without the compiler takes no minutes."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def clones(params):
    return [p.detach().clone().requires_grad_() for p in params]


def train(params, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def through_a_file(state_dict, tmp_path):
    bnb.checkpoint.save(state_dict, tmp_path / "optimizer.pt")
    return bnb.checkpoint.load(tmp_path / "optimizer.pt")


def close(first, second, start, within):
    """Both went the same way from `start`, up to a share of the way."""
    for a, b, origin in zip(first, second, start, strict=True):
        way = (a - origin).norm()
        assert way > 0
        assert (a - b).norm() <= within * way


# Ours, theirs, and options that mean the same to both.
BITSANDBYTES = {
    "adam": (bnb.optim.Adam, theirs_bnb.Adam, {"lr": 1e-2, "betas": (0.8, 0.99)}, {}),
    "adamw": (bnb.optim.AdamW, theirs_bnb.AdamW, {"lr": 1e-2, "weight_decay": 0.1}, {}),
    "sgd": (bnb.optim.SGD, theirs_bnb.SGD, {"lr": 1e-2, "momentum": 0.8, "weight_decay": 0.1}, {}),
    "lion": (bnb.optim.Lion, theirs_bnb.Lion, {"lr": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.1}, {}),
    "rmsprop": (bnb.optim.RMSprop, theirs_bnb.RMSprop, {"lr": 1e-3, "alpha": 0.9, "weight_decay": 0.1}, {}),
    "adagrad": (bnb.optim.Adagrad, theirs_bnb.Adagrad, {"lr": 1e-2, "eps": 1e-6}, {}),
    "ademamix": (bnb.optim.AdEMAMix, theirs_bnb.AdEMAMix, {"lr": 1e-3, "t_alpha": 20, "t_beta3": 20}, {}),
}
BNB_RULES = pytest.mark.parametrize("rule", BITSANDBYTES)
BITS = pytest.mark.parametrize("bits", [8, 32])
# How far 8-bit training leads apart in 3 steps: bitsandbytes' encoder on a CPU is not always the nearest code. Lion's
# update is a sign, which a code next to zero decides; squares in its signed map have half the codes.
APART = {"lion": 0.2, "rmsprop": 0.05, "adagrad": 0.05}


def unwrapped(state_dict):
    """As old versions of bitsandbytes wrote it."""
    state_dict = copy.deepcopy(state_dict)
    for entry in state_dict["state"].values():
        entry.update(entry.pop("__bnb_optimizer_quant_state__", {}))
    return state_dict


def codes_of_bitsandbytes(entry):
    """By our names, (codes, absmax) of an entry, for the rules whose maps are ours."""
    both = entry["state1"], entry["absmax1"]
    if entry["state1"].dim() > 2 or entry["absmax1"].dim() == 2:
        return {"exp_avg": (both[0][0], both[1][0]), "exp_avg_slow": (both[0][1], both[1][1])}
    return {"exp_avg": both, "momentum_buffer": both}


@BNB_RULES
@BITS
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "open"])
def test_bitsandbytes_state_loads_into_ours_and_goes_on(rule, bits, wrapped, tmp_path):
    ours, theirs, options, _ = BITSANDBYTES[rule]
    there = parameters()
    old = theirs(there, optim_bits=bits, **options)
    train(there, old, range(4))
    start = clones(there)
    here = clones(there)
    new = ours(here, optim_bits=bits, lr=0.5)
    saved = through_a_file(old.state_dict() if wrapped else unwrapped(old.state_dict()), tmp_path)
    new.load_state_dict(saved)
    assert new.param_groups[0]["lr"] == options["lr"]
    for p, q in zip(there, here, strict=True):
        entry = old.state[p]
        assert new.state[q]["step"] == 4
        if entry["state1"].dtype == torch.uint8 and rule not in ("rmsprop", "adagrad"):
            for name, (codes, absmax) in codes_of_bitsandbytes(entry).items():
                if name in ours.states:
                    assert torch.equal(new.state[q][f"{name}_codes"], codes)
                    assert torch.equal(new.state[q][f"{name}_absmax"], absmax)
            if "exp_avg_sq" in ours.states:
                assert torch.equal(new.state[q]["exp_avg_sq_codes"], entry["state2"])
    train(there, old, range(4, 7))
    train(here, new, range(4, 7))
    close(there, here, start, 1e-4 if bits == 32 else APART.get(rule, 0.02))


@BNB_RULES
@BITS
def test_our_state_loads_into_bitsandbytes_and_goes_on(rule, bits):
    ours, theirs, options, _ = BITSANDBYTES[rule]
    here = parameters()
    old = ours(here, optim_bits=bits, **options)
    train(here, old, range(4))
    start, there = clones(here), clones(here)
    new = theirs(there, optim_bits=bits, **{**options, "lr": 0.5})
    converted = bnb.checkpoint.convert(old.state_dict(), to="bitsandbytes", rule=rule)
    new.load_state_dict(converted)
    assert new.param_groups[0]["lr"] == options["lr"]
    for p, q in zip(here, there, strict=True):
        in_8bits = asks_for_8bit({"optim_bits": bits, "min_8bit_size": 4096}, p)
        assert (new.state[q]["state1"].dtype == torch.uint8) == in_8bits
        if in_8bits and rule not in ("rmsprop", "adagrad"):
            for name, (codes, absmax) in codes_of_bitsandbytes(new.state[q]).items():
                if name in ours.states:
                    assert torch.equal(old.state[p][f"{name}_codes"], codes)
                    assert torch.equal(old.state[p][f"{name}_absmax"], absmax)
    train(here, old, range(4, 7))
    train(there, new, range(4, 7))
    close(here, there, start, 1e-4 if bits == 32 else APART.get(rule, 0.02))


@BITS
def test_lamb_goes_to_bitsandbytes_and_back(bits):
    """Its LAMB is another algorithm, with the same moments."""
    here = parameters()
    old = bnb.optim.LAMB(here, optim_bits=bits)
    train(here, old, range(3))
    there = clones(here)
    new = theirs_bnb.LAMB(there, optim_bits=bits)
    new.load_state_dict(bnb.checkpoint.convert(old.state_dict(), to="bitsandbytes", rule="lamb"))
    train(there, new, range(3, 5))
    back = bnb.optim.LAMB(clones(there), optim_bits=bits)
    back.load_state_dict(new.state_dict())
    assert back.state[back.param_groups[0]["params"][0]]["step"] == 5


@pytest.mark.parametrize("blocksize", [256, 2048])
@pytest.mark.parametrize("other_map", [False, True])
def test_another_block_size_or_map_is_decoded_as_the_file_says(blocksize, other_map):
    """bitsandbytes had 2048 elements a block, and takes any map."""
    there = parameters()
    old = theirs_bnb.Lion(there, optim_bits=8)
    train(there, old, range(1))
    values = torch.randn(SHAPES[2])
    qmap = torch.linspace(-1, 1, 256) if other_map else theirs_functional.create_dynamic_map()
    codes, quantized = theirs_functional.quantize_blockwise(values, code=qmap, blocksize=blocksize)
    old.state[there[2]].update(state1=codes, qmap1=qmap, absmax1=quantized.absmax)
    expected = theirs_functional.dequantize_blockwise(codes, quantized)
    new = bnb.optim.Lion(clones(there), optim_bits=8)
    new.load_state_dict(old.state_dict())
    state = new.state[new.param_groups[0]["params"][2]]
    if (blocksize, other_map) == (256, False):
        assert torch.equal(state["exp_avg_codes"], codes) and torch.equal(state["exp_avg_absmax"], quantized.absmax)
    else:
        torch.testing.assert_close(state["exp_avg"], expected, rtol=1e-6, atol=1e-9)
    converted = bnb.checkpoint.convert(old.state_dict(), to="torch_bnb", rule="lion")["state"][2]
    decoded = bnb.codec.dequantize_blockwise(converted["exp_avg_codes"], converted["exp_avg_absmax"])
    assert (decoded - expected).norm() < 0.02 * expected.norm()


def test_a_map_of_a_machine_that_rounds_otherwise_is_the_same_map():
    there = parameters()
    old = theirs_bnb.Lion(there, optim_bits=8)
    train(there, old, range(1))
    state = old.state[there[0]]
    state["qmap1"] = torch.nextafter(state["qmap1"], state["qmap1"].sign() * 2)
    new = bnb.optim.Lion(clones(there), optim_bits=8)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.state[new.param_groups[0]["params"][0]]["exp_avg_codes"], state["state1"])


def test_what_bitsandbytes_had_and_ours_has_not_is_said():
    there = parameters()
    old = theirs_bnb.Adam8bit(there, weight_decay=0.1)
    train(there, old, range(1))
    saved = old.state_dict()
    saved["state"][0]["__bnb_optimizer_quant_state__"]["gnorm_vec"] = torch.zeros(100)
    with pytest.warns(UserWarning) as said:
        bnb.optim.Adam8bit(clones(there)).load_state_dict(saved)
    assert [str(warning.message) for warning in said] == [
        "torch_bnb has no place for 'gnorm_vec', the history of percentile_clipping; it stays behind",
        "bitsandbytes' Adam takes weight decay apart from the gradient: AdamW goes on as it did",
    ]
    with pytest.raises(ValueError, match="this is the state of adam or adamw or lamb, not of lion"):
        bnb.optim.Lion8bit(clones(there)).load_state_dict(saved)


@pytest.mark.parametrize("to", ["torch", "bitsandbytes", "torchao"])
def test_options_that_stay_behind_are_said(to):
    here = parameters()
    old = bnb.optim.AdamW(here, optim_bits=8, percentile_clipping=50, max_unorm=1.0)
    train(here, old, range(2))
    before = copy.deepcopy(old.state_dict())
    with pytest.warns(UserWarning) as said:
        converted = bnb.checkpoint.convert(old.state_dict(), to=to, rule="adamw")
    texts = "; ".join(str(warning.message) for warning in said)
    assert all(what in texts for what in ("'grad_norms'", "percentile_clipping=50", "max_unorm=1.0"))
    for entry in converted["state"].values():  # no memory is shared
        for value in entry.get("__bnb_optimizer_quant_state__", entry).values():
            if type(value) is torch.Tensor:
                value.zero_()
    torch.testing.assert_close(old.state_dict()["state"], before["state"], rtol=0, atol=0, equal_nan=True)


def test_schedulers_keys_and_names_travel():
    here = parameters()
    named = [("a", here[0]), ("b", here[1]), ("c", here[2])]
    old = bnb.optim.AdamW(named, optim_bits=8)
    torch.optim.lr_scheduler.ExponentialLR(old, 0.5)
    train(here, old, range(1))
    for to in ("torch", "bitsandbytes", "torchao"):
        (group,) = bnb.checkpoint.convert(old.state_dict(), to=to, rule="adamw")["param_groups"]
        assert (group["initial_lr"], group["param_names"], group["params"]) == (1e-3, ["a", "b", "c"], [0, 1, 2])
        assert not {"optim_bits", "base_lr", "min_8bit_size", "seed"} & group.keys()


def test_squares_above_zero_stay_above_zero_in_the_signed_map():
    p = torch.zeros(64, 64, requires_grad=True)
    old = bnb.optim.RMSprop([p], optim_bits=8)
    p.grad = torch.full_like(p, 1e-6)
    p.grad[0, 0] = 1.0
    old.step()
    new = bnb.checkpoint.convert(old.state_dict(), to="bitsandbytes", rule="rmsprop")["state"][0]
    state = new["__bnb_optimizer_quant_state__"]
    assert (state["qmap1"][state["state1"].long()] > 0).all()


@BITS
def test_lars_of_bitsandbytes_is_refused_and_goes_on_as_sgd(bits):
    """It is SGD with a longest update, and in 8 bits without one."""
    there = parameters()
    old = theirs_bnb.LARS(there, lr=0.1, momentum=0.9, optim_bits=bits, min_8bit_size=1)
    train(there, old, range(2))
    with pytest.raises(ValueError, match=r"lars: bitsandbytes keeps the momentum of the gradient.* take it as sgd"):
        bnb.optim.LARS(clones(there)).load_state_dict(old.state_dict())
    start, here = clones(there), clones(there)
    longest = {8: 0.0, 32: 0.02}[bits]
    new = bnb.optim.SGD(here, lr=0.1, momentum=0.9, optim_bits=bits, min_8bit_size=1, max_unorm=longest)
    new.load_state_dict(old.state_dict())
    train(there, old, range(2, 4))
    train(here, new, range(2, 4))
    close(there, here, start, 0.02)


@pytest.mark.parametrize("rule", ["adam", "adamw"])
def test_torchao_state_loads_into_ours_and_goes_on(rule, tmp_path):
    ours, theirs = {"adam": (bnb.optim.Adam, torchao.Adam8bit), "adamw": (bnb.optim.AdamW, torchao.AdamW8bit)}[rule]
    there = parameters()
    old = theirs(there, lr=1e-2, weight_decay=0.1)
    train(there, old, range(4))
    start, here = clones(there), clones(there)
    new = ours(here, optim_bits=8, lr=0.5)
    new.load_state_dict(old.state_dict())
    for name in ours.states:
        kept = old.state[there[0]][name]
        assert torch.equal(new.state[here[0]][f"{name}_codes"], kept.codes)
        assert torch.equal(new.state[here[0]][f"{name}_absmax"], kept.scale)
    from_file = ours(clones(there), optim_bits=8, lr=0.5)
    from_file.load_state_dict(through_a_file(old.state_dict(), tmp_path))
    for p, q in zip(here, from_file.param_groups[0]["params"], strict=True):
        for key, value in new.state[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(from_file.state[q][key]))
    assert new.param_groups[0]["lr"] == pytest.approx(1e-2)
    train(there, old, range(4, 7))
    train(here, new, range(4, 7))
    close(there, here, start, 0.02)


@BITS
def test_our_state_loads_into_torchao_and_goes_on(bits):
    here = parameters()
    old = bnb.optim.AdamW(here, optim_bits=bits, lr=1e-2, weight_decay=0.1)
    train(here, old, range(4))
    start, there = clones(here), clones(here)
    new = torchao.AdamW8bit(there, lr=0.5)
    new.load_state_dict(bnb.checkpoint.convert(old.state_dict(), to="torchao"))
    kept = new.state[there[0]]["exp_avg"]
    assert type(kept).__name__ == "OptimState8bit" and kept.block_size == 256
    if bits == 8:
        assert torch.equal(kept.codes, old.state[here[0]]["exp_avg_codes"])
        assert torch.equal(kept.scale, old.state[here[0]]["exp_avg_absmax"])
    assert type(new.state[there[2]]["exp_avg"]) is torch.Tensor, (
        "torchao has no tails: it keeps such a state in float32"
    )
    train(here, old, range(4, 7))
    train(there, new, range(4, 7))
    close(here, there, start, 0.03)


TORCH = {
    "adam": (bnb.optim.Adam, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamw": (bnb.optim.AdamW, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "maximize": True}),
    "sgd": (bnb.optim.SGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "rmsprop": (bnb.optim.RMSprop, torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9, "centered": True}),
    "adagrad": (bnb.optim.Adagrad, torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 0.1}),
}


@pytest.mark.parametrize("rule", TORCH)
@BITS
def test_our_state_loads_into_torch_and_goes_on(rule, bits):
    ours, theirs, options = TORCH[rule]
    here = parameters()
    old = ours(here, optim_bits=bits, **options)
    train(here, old, range(4))
    start, there = clones(here), clones(here)
    new = theirs(there, **{**options, "lr": 0.5})
    new.load_state_dict(bnb.checkpoint.convert(old.state_dict(), to="torch", rule=rule))
    assert new.param_groups[0].keys() == theirs([torch.zeros(1)]).param_groups[0].keys()
    train(here, old, range(4, 7))
    train(there, new, range(4, 7))
    close(here, there, start, 1e-4 if bits == 32 else 0.02)


@pytest.mark.parametrize("rule", TORCH)
@BITS
def test_torch_state_loads_into_ours_and_goes_on(rule, bits, tmp_path):
    ours, theirs, options = TORCH[rule]
    there = parameters()
    old = theirs(there, **options)
    train(there, old, range(4))
    start, here = clones(there), clones(there)
    new = ours(here, optim_bits=bits, **options)
    new.load_state_dict(through_a_file(old.state_dict(), tmp_path))
    assert not {"amsgrad", "differentiable", "decoupled_weight_decay"} & new.param_groups[0].keys()
    train(there, old, range(4, 7))
    train(here, new, range(4, 7))
    close(there, here, start, 1e-4 if bits == 32 else 0.02)


def test_torchao_files_are_read_where_torchao_is_not(tmp_path):
    there = parameters()
    old = torchao.AdamW8bit(there)
    train(there, old, range(2))
    bnb.checkpoint.save(old.state_dict(), tmp_path / "torchao.pt")
    code = f"""
import sys
sys.modules["torchao"] = None
import torch, torch_bnb as bnb
saved = bnb.checkpoint.load({str(tmp_path / "torchao.pt")!r})
optimizer = bnb.optim.AdamW8bit([torch.zeros(shape, requires_grad=True) for shape in {SHAPES}])
optimizer.load_state_dict(saved)
print(int(optimizer.state_dict()["state"][0]["exp_avg_codes"].long().sum()))
try:
    bnb.checkpoint.convert(saved, to="torchao")
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    total = int(old.state[there[0]]["exp_avg"].codes.long().sum())
    assert done.stdout.split("\n")[:2] == [
        str(total),
        "Writing torchao's form needs its tensor class: pip install torchao",
    ]


def test_a_rule_is_named_in_any_case():
    params = parameters()
    optimizer = bnb.optim.Adam(params)
    train(params, optimizer, range(1))
    converted = bnb.checkpoint.convert(optimizer.state_dict(), to="torch", rule="Adam")
    assert converted["param_groups"][0]["decoupled_weight_decay"] is False


def test_sgd_with_dampening_goes_on_from_torchs_state_as_torch_does():
    there = parameters()
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    old = torch.optim.SGD(there, **options)
    train(there, old, range(3))
    here = clones(there)
    new = bnb.optim.SGD(here, **options)
    new.load_state_dict(old.state_dict())
    train(there, old, range(3, 5))
    train(here, new, range(3, 5))
    for p, q in zip(here, there, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(("old", "new", "how"), [("AdamW", "Adam", "apart from"), ("Adam", "AdamW", "as a part of")])
def test_weight_decay_that_changes_its_kind_is_a_warning(old, new, how):
    params = parameters()
    state = getattr(torch.optim, old)(params, weight_decay=0.1).state_dict()
    with pytest.warns(UserWarning, match=f"^the weights decayed {how} the gradient: {old} goes on as it did"):
        getattr(bnb.optim, new)(params).load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(bnb.optim, old)(params).load_state_dict(state)
        getattr(bnb.optim, new)(params).load_state_dict(getattr(torch.optim, old)(params, weight_decay=0).state_dict())
