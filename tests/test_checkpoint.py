"""State that is saved and loaded: bit for bit, whatever the bits, and nothing else."""

import copy
import io
import pickle

import numpy as np
import pytest
import seeded
import torch
from cases import CASES
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import torch_bnb as bnb
from torch_bnb.overrides import hints

EVERY_RULE = pytest.mark.parametrize("name", CASES)


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def start(name, dtype=torch.float32, bits=8, seed=3, **options):
    generator = seeded.generator(seed)
    shapes = [(70, 90), (300,), (0, 4), (9000,)]
    params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    case = CASES[name]
    return params, case.optimizer(params, lr=case.lr, optim_bits=bits, **case.configs[1], **options)


def run(params, optimizer, steps):
    for step in steps:
        generator = seeded.generator(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def same_state(first, second):
    a, b = first.state_dict()["state"], second.state_dict()["state"]
    assert a.keys() == b.keys()
    for index in a:
        assert a[index].keys() == b[index].keys()
        for key, value in a[index].items():
            other = b[index][key]
            if torch.is_tensor(value):
                assert value.dtype == other.dtype and value.shape == other.shape and torch.equal(value, other), key
            else:
                assert value == other and type(value) is type(other), key


@EVERY_RULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [8, 32])
def test_resume_is_bit_exact(name, dtype, bits):
    params, optimizer = start(name, dtype, bits)
    run(params, optimizer, range(8))

    stopped, before = start(name, dtype, bits)
    run(stopped, before, range(5))
    saved = through_a_file({"params": [p.detach() for p in stopped], "optimizer": before.state_dict()})

    resumed, after = start(name, dtype, bits, seed=99)
    for p, q in zip(resumed, saved["params"], strict=True):
        p.data.copy_(q)
    after.load_state_dict(saved["optimizer"])
    same_state(before, after)
    run(resumed, after, range(5, 8))
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)
    same_state(optimizer, after)


def test_loading_shares_no_memory_with_the_checkpoint():
    params, first = start("adamw")
    run(params, first, range(2))
    saved = first.state_dict()
    _, second = start("adamw")
    second.load_state_dict(saved)
    before = copy.deepcopy(first.state_dict()["state"][0])
    run(second.param_groups[0]["params"], second, range(2))
    assert all(torch.equal(torch.as_tensor(before[key]), torch.as_tensor(saved["state"][0][key])) for key in before)


@EVERY_RULE
def test_loading_its_own_state_is_harmless(name):
    params, optimizer = start(name)
    optimizer.load_state_dict(optimizer.state_dict())  # Accelerate does this before there is any state
    assert optimizer.state_dict()["state"] == {}
    run(params, optimizer, range(2))
    before = copy.deepcopy(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    same_state(before, optimizer)


@EVERY_RULE
@pytest.mark.parametrize(("saved_bits", "bits"), [(8, 32), (32, 8)])
def test_state_saved_with_other_bits_is_converted(name, saved_bits, bits):
    params, old = start(name, bits=saved_bits)
    run(params, old, range(3))
    _, new = start(name, bits=bits)
    new.load_state_dict(through_a_file(old.state_dict()))
    assert new.param_groups[0]["optim_bits"] == bits, "how state is kept is the program's choice"
    p = new.param_groups[0]["params"][0]
    for key, signed in CASES[name].optimizer.states.items():
        if key not in old.state[params[0]] and f"{key}_codes" not in old.state[params[0]]:
            continue  # the configuration does without
        old_state, state = old.state[params[0]], new.state[p]
        if bits == 8:
            assert torch.equal(state[key], old_state[key]), "nothing is lost before the step: a hint may still come"
        else:
            decoded = bnb.codec.dequantize_blockwise(old_state[f"{key}_codes"], old_state[f"{key}_absmax"], signed)
            assert torch.equal(state[key], decoded)
        assert state["step"] == 3
    run(new.param_groups[0]["params"], new, range(3, 5))
    assert any(key.endswith("_codes") for key in new.state[p]) == (bits == 8)
    assert new.state[p]["step"] == 5


LATE = [("sgd", {"momentum": 0.9}), ("lars", {"momentum": 0.9}), ("rmsprop", {"momentum": 0.9, "centered": True})]


@pytest.mark.parametrize(("name", "options"), LATE)
@pytest.mark.parametrize("how", ["constructor", "hint"])
def test_a_buffer_that_the_checkpoint_did_without_begins_where_options_now_want_it(name, options, how, manager):
    make, without = CASES[name].optimizer, {key: type(value)() for key, value in options.items()}
    p = torch.randn(5000, requires_grad=True)
    old = make([p], lr=0.01, optim_bits=8, **without)
    run([p], old, range(3))
    saved = through_a_file(old.state_dict())
    q = p.detach().clone().requires_grad_()
    new = make([q], lr=0.01, optim_bits=8, **(options if how == "constructor" else without))
    if how == "hint":
        manager.override_config([p, q], key_value_dict=options)
    new.load_state_dict(saved)
    assert new.param_groups[0]["momentum"] == 0.0, "options are the checkpoint's"
    run([p], old, range(3, 6))
    run([q], new, range(3, 6))
    assert torch.equal(p, q)
    assert ("momentum_buffer_codes" in new.state[q]) == (how == "hint")


def test_a_hint_that_comes_after_the_load_finds_the_state_whole(manager):
    params, old = start("adamw")
    manager.override_config(params[0], "optim_bits", 32)
    run(params, old, range(3))
    resumed, new = start("adamw")
    for p, q in zip(resumed, params, strict=True):
        p.data.copy_(q)
    new.load_state_dict(through_a_file(old.state_dict()))
    manager.override_config(resumed[0], "optim_bits", 32)
    run(params, old, range(3, 6))
    run(resumed, new, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, resumed, strict=True))


def test_state_of_torch_sgd_keeps_its_momentum():
    p = torch.randn(100, 60, requires_grad=True)
    q = p.detach().clone().requires_grad_()
    theirs, ours = (cls([x], lr=1e-2, momentum=0.9) for cls, x in ((torch.optim.SGD, p), (bnb.optim.SGD, q)))
    run([p], theirs, range(3))
    q.data.copy_(p)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    run([p], theirs, range(3, 6))
    run([q], ours, range(3, 6))
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_state_of_torch_adamw_continues_in_ours():
    p = torch.randn(100, 60, requires_grad=True)
    q = p.detach().clone().requires_grad_()
    theirs, ours = torch.optim.AdamW([p], lr=1e-2), bnb.optim.AdamW([q], lr=1e-2)
    run([p], theirs, range(3))
    q.data.copy_(p)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    run([p], theirs, range(3, 6))
    run([q], ours, range(3, 6))
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_learning_rates_come_from_the_checkpoint_and_missing_options_from_the_constructor():
    _, old = start("adamw")
    old.param_groups[0]["lr"] = 0.125
    saved = old.state_dict()
    del saved["param_groups"][0]["maximize"]
    _, new = start("adamw", min_8bit_size=16)
    new.load_state_dict(saved)
    group = new.param_groups[0]
    assert (group["lr"], group["base_lr"], group["maximize"], group["min_8bit_size"]) == (0.125, 0.01, False, 16)
    assert "differentiable" not in new.defaults


def test_a_hints_rate_goes_by_what_both_optimizers_were_built_with_under_the_same_cyclic_schedule(manager):
    p = torch.randn(100, requires_grad=True)
    theirs, ours = (cls([p], lr=1e-2) for cls in (torch.optim.AdamW, bnb.optim.AdamW))
    for optimizer in (theirs, ours):
        torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-3, 1e-1, step_size_up=2)
    run([p], theirs, range(1))
    manager.override_config(p, "lr", 1e-4)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    assert ours.param_groups[0]["base_lr"] == 1e-2
    assert manager.explain(ours)[0].lr == pytest.approx(1e-5)


@pytest.mark.parametrize("schedule", ["none", "linear", "one cycle"])
def test_a_hints_rate_follows_the_schedule_of_a_checkpoint_of_torch(schedule, manager):
    p = torch.randn(100, requires_grad=True)
    theirs = torch.optim.AdamW([p], lr=1e-2)
    if schedule == "linear":
        scheduler = torch.optim.lr_scheduler.LinearLR(theirs, 1.0, 0.5, total_iters=1)
    elif schedule == "one cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, 1e-2, total_steps=10)
    run([p], theirs, range(1))
    if schedule != "none":
        scheduler.step()
    own = 0.25 if schedule == "linear" else 1e-2  # what the scheduler has noted counts, else what it is built with
    ours = bnb.optim.AdamW([p], lr=own)
    manager.override_config(p, "lr", 1e-4)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    group = ours.param_groups[0]
    assert group["base_lr"] == 1e-2
    assert manager.explain(ours)[0].lr == pytest.approx(1e-4 * group["lr"] / 1e-2)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_the_optimizer_copies_and_pickles_with_its_overrides(clone, manager):
    params, optimizer = start("adamw")
    manager.override_config(params[0], "lr", 0.5)
    run(params, optimizer, range(2))
    other = clone(optimizer)
    same_state(optimizer, other)
    copies = other.param_groups[0]["params"]
    run(params, optimizer, range(2, 4))
    run(copies, other, range(2, 4))
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_hints_through_modules_hold_in_a_copy_of_the_optimizer_until_a_known_module_has_its_parameters(clone, manager):
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(100, 64), "head": torch.nn.Linear(64, 100)})
    manager.register_parameters(model)
    manager.override_named(model, {"head.*": {"lr": 0.5}})
    optimizer = bnb.optim.AdamW(model.parameters(), lr=0.1, optim_bits=8)
    run([*model.parameters()], optimizer, range(2))
    other = clone(optimizer)
    copies = other.param_groups[0]["params"]
    run([*model.parameters()], optimizer, range(2, 4))
    run(copies, other, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), copies, strict=True))
    same_state(optimizer, other)

    def rates(optimizer):
        return [row.lr for row in manager.explain(optimizer)]

    manager.override_config(copies[0], "lr", 0.25)
    assert rates(other) == [0.25, 0.5, 0.5] and rates(optimizer) == [0.1, 0.5, 0.5]
    body = torch.nn.Linear(64, 100)
    body.weight = copies[1]
    manager.register_parameters(body)
    assert rates(other) == [0.25, 0.1, 0.5]
    manager.initialize()
    assert rates(other) == [0.1, 0.1, 0.1]


def test_a_hint_given_after_unpickling_in_another_process_is_the_later_one(manager, monkeypatch):
    model = torch.nn.Linear(64, 64)
    manager.override_named(model, {"weight": {"lr": 0.5}})
    optimizer = bnb.optim.AdamW(bnb.param_groups(model), lr=0.1)
    manager.override_config(model.bias, "lr", 0.25)
    pickled = pickle.dumps(optimizer)
    manager.initialize()  # another process has seen as many of these as it has,
    monkeypatch.setattr(hints, "_order", 0)  # and counts its hints from 1
    other = pickle.loads(pickled)
    rows = {row.shape: row.lr for row in manager.explain(other)}
    assert rows == {(64, 64): 0.5, (64,): 0.25}
    for group in other.param_groups:
        manager.override_config(group["params"], "lr", 0.125)
    assert [row.lr for row in manager.explain(other)] == [0.125, 0.125]


def test_numbers_of_numpy_are_kept_as_pythons():
    options = {"lr": np.float32(0.5), "betas": tuple(np.array([0.9, 0.99, 0.999])), "alpha": np.float64(2)}
    counts = {"t_alpha": np.int64(10), "t_beta3": np.int32(20), "seed": np.uint8(3)}
    optimizer = bnb.optim.AdEMAMix([torch.zeros(3, requires_grad=True)], **options, **counts)
    group = through_a_file(optimizer.state_dict())["param_groups"][0]
    assert all(type(group[key]) is int for key in counts)


def test_users_hooks_see_the_state():
    params, optimizer = start("adamw")
    run(params, optimizer, range(1))
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append(len(s["state"])))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(len(o.state)))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [4, 4]


DAMAGE = [
    (lambda s: s["state"][0].pop("exp_avg_absmax"), "'exp_avg_codes' and 'exp_avg_absmax' belong together"),
    (lambda s: s["state"][0].update(state1=torch.ones(3)), r"unknown state \['state1'\]; expected some of"),
    (lambda s: s["state"][0].update(exp_avg_codes=torch.zeros(5, dtype=torch.uint8)), r"shape \(70, 90\), got \(5,\)"),
    (lambda s: s["state"][0].update(exp_avg_absmax=torch.zeros(5)), r"shape \(25,\) or .*, got \(5,\)"),
    (lambda s: s["state"][0].update(exp_avg_codes="oops"), "'exp_avg_codes' must be a tensor, got 'oops'"),
    (lambda s: s["state"][0].pop("exp_avg_sq_codes") is s["state"][0].pop("exp_avg_sq_absmax"), "lacks 'exp_avg_sq'"),
    (lambda s: s["param_groups"][0].update(betas=3), "group 0 of the checkpoint: betas=3: expected two numbers"),
    (lambda s: s["state"].update({17: {"step": 1}}), r"keys that no group names: \[17\]"),
    (
        lambda s: s["state"].pop(s["param_groups"][0]["params"].pop()),
        r"groups hold \[3\] parameters, this optimizer's \[4\]",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[m for _, m in DAMAGE])
def test_a_damaged_checkpoint_is_an_error_and_changes_nothing(damage, message):
    params, optimizer = start("adamw")
    run(params, optimizer, range(2))
    saved = through_a_file(optimizer.state_dict())
    damage(saved)
    before = copy.deepcopy(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    same_state(before, optimizer)
    run(params, optimizer, range(2, 3))


@pytest.mark.parametrize("theirs", [bnb.optim.AdamW, torch.optim.AdamW])
def test_a_full_checkpoint_in_32_bits_is_not_lost_beside_the_state_that_torch_has_made_first(theirs):
    """set_state_dict has a fresh optimizer make its state, and puts the checkpoint's entries beside it."""
    full = StateDictOptions(full_state_dict=True)

    def start(optimizer, **options):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 128)
        return model, optimizer(model.parameters(), lr=1e-2, **options)

    model, optimizer = start(theirs)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 64)).square().sum().backward()
        optimizer.step()
    weights, state = get_state_dict(model, optimizer, options=full)
    other, in_8bit = start(bnb.optim.AdamW8bit)
    if theirs is torch.optim.AdamW:  # else torch misses the options that ours has and theirs lacks
        state = bnb.checkpoint.convert(state, to="torch_bnb", rule="adamw")
    set_state_dict(other, in_8bit, model_state_dict=weights, optim_state_dict=state, options=full)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(in_8bit.state[other.weight][name], optimizer.state[model.weight][name])
    other.weight.grad, other.bias.grad = model.weight.grad, model.bias.grad
    in_8bit.step()
    assert in_8bit.state[other.weight]["exp_avg_codes"].count_nonzero() and in_8bit.state[other.weight]["step"] == 4


def test_a_state_in_two_forms_is_an_error_where_none_is_known_to_be_the_optimizers():
    params, optimizer = start("adamw")
    run(params, optimizer, range(1))
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = torch.ones(70, 90)
    fresh = type(optimizer)(params, **optimizer.defaults)
    with pytest.raises(ValueError, match="there are 'exp_avg' and 'exp_avg_codes'; expected one of them"):
        fresh.load_state_dict(saved)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/o\.pt: there is no folder .*none$"):
        bnb.checkpoint.save({}, tmp_path / "none" / "o.pt")


def test_numpys_numbers_in_groups_are_saved_as_pythons(tmp_path):
    optimizer = bnb.optim.AdamW([torch.ones(5, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + np.cos(step / 10)))
    optimizer.step()
    schedule.step()
    optimizer.param_groups[0]["betas"] = (np.float32(0.5), 0.9)
    assert isinstance(optimizer.param_groups[0]["lr"], np.float64)
    saved = optimizer.state_dict()["param_groups"][0]
    assert type(saved["lr"]) is float and type(saved["betas"][0]) is float
    bnb.checkpoint.save(optimizer.state_dict(), tmp_path / "o.pt")
    assert bnb.checkpoint.load(tmp_path / "o.pt")["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"]


def test_what_a_wrapper_keeps_in_the_state_is_an_error_when_it_is_saved_and_not_when_it_is_loaded():
    p = torch.nn.Parameter(torch.randn(5000))
    p.grad = torch.ones(5000)
    optimizer = bnb.optim.AdamW([p], optim_bits=8)
    optimizer.step()
    optimizer.state[p].update(slow_weights=p.detach().clone(), calls=1)
    optimizer.step()  # it is nobody's business as long as it is not saved
    with pytest.raises(
        ValueError, match=r"AdamW has calls, slow_weights in the state of the parameter of shape \(5000"
    ):
        optimizer.state_dict()
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": []})
    optimizer.step()  # whose plan is made anew
    optimizer.param_groups.pop()
    for key in ("slow_weights", "calls"):
        del optimizer.state[p][key]
    optimizer.load_state_dict(optimizer.state_dict())
