"""Checkpoints that are damaged, hostile or half written: an error that says so, and nothing is changed."""

import contextlib
import copy
import functools
import io
import itertools
import multiprocessing
import os
import pickle
import random
import time
import warnings
import zipfile

import pytest
import saver
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torch_bnb as bnb
from torch_bnb.checkpoint.formats.torchao import STAND_INS

FORMS = ("8 bits", "32 bits", "torch.optim", "bitsandbytes", "torchao")
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
SHAPES = [(64, 64), (50,), (4500,)]


def optimizer_with_state(seed=0, bits=8):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    optimizer = bnb.optim.AdamW([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], lr=1e-2, optim_bits=bits)
    for _ in range(2):
        step(optimizer, generator)
    return optimizer


def step(optimizer, generator=None):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


@functools.cache
def saved_in(form):
    """A state_dict of AdamW in one of the forms, as it comes out of a file."""
    if form in ("8 bits", "32 bits"):
        return optimizer_with_state(1, int(form.split()[0])).state_dict()
    state_dict = optimizer_with_state(1).state_dict()
    if form == "torch.optim":
        return bnb.checkpoint.convert(state_dict, to="torch", rule="adamw")
    if form == "bitsandbytes":
        return bnb.checkpoint.convert(state_dict, to="bitsandbytes")
    stand_in = STAND_INS[0][0]

    def in_torchaos_class(entry, name, signed):
        tensor = torch.Tensor._make_wrapper_subclass(stand_in, entry[f"{name}_codes"].shape)
        tensor.codes, tensor.scale = entry[f"{name}_codes"], entry[f"{name}_absmax"]
        tensor.qmap, tensor.signed, tensor.block_size = bnb.codec.create_dynamic_map(signed), signed, 256
        return tensor

    for entry in state_dict["state"].values():
        if "exp_avg_codes" in entry and entry["exp_avg_codes"].numel() % 256 == 0:
            moments = {n: in_torchaos_class(entry, n, n == "exp_avg") for n in ("exp_avg", "exp_avg_sq")}
        else:
            moments = {n: torch.zeros(SHAPES[1]) for n in ("exp_avg", "exp_avg_sq")}
        entry.clear()
        entry.update(step=torch.tensor(2.0), **moments)
    for n in ("exp_avg", "exp_avg_sq"):
        state_dict["state"][2][n] = torch.zeros(SHAPES[2])
    keys = ("lr", "betas", "eps", "weight_decay", "params")
    groups = [
        {k: g[k] for k in keys} | {"amsgrad": False, "lr": torch.tensor(g["lr"])} for g in state_dict["param_groups"]
    ]
    return {"state": state_dict["state"], "param_groups": groups}


def same(a, b):
    """Whether two nests of containers and tensors are equal, bit for bit."""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def copied(nest):
    """A copy of the containers; damage replaces tensors and does not write into them."""
    if isinstance(nest, dict):
        return {key: copied(value) for key, value in nest.items()}
    return [copied(value) for value in nest] if isinstance(nest, list) else nest


def places(nest, path=()):
    """Every (container, key) in a nest."""
    for key, value in nest.items() if isinstance(nest, dict) else enumerate(nest):
        yield nest, key
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


JUNK = [None, "x", -1, 0, 1.5, float("nan"), 10**30, True, [], {}, (), b"", [3], {"a": 1}, 2j, torch.zeros(())]
JUNK += [torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2, device="meta"), torch.ones(2).to_sparse()]


def damage(nest, data):
    """Does something to a random entry of a nest."""
    container, key = data.draw(st.sampled_from(list(places(nest))), label="entry")
    kinds = ["remove", "junk", "extra"]
    value = container[key]
    if type(value) is torch.Tensor and value.dim() and value.layout is torch.strided and not value.is_meta:
        kinds += ["truncate", "cast", "reshape", "noise"] * 2
    kind = data.draw(st.sampled_from(kinds), label="damage")
    if kind == "remove":
        del container[key]
    elif kind == "junk":
        container[key] = copied(data.draw(st.sampled_from(JUNK), label="junk"))
    elif kind == "extra" and isinstance(container, dict):
        container[data.draw(st.sampled_from(["foo", 17, "state1", "exp_avg_codes", "step"]))] = copied(value)
    elif kind == "extra":
        container.append(copied(value))
    elif kind == "truncate":
        container[key] = value.flatten()[: data.draw(st.integers(0, value.numel()))]
    elif kind == "cast":
        container[key] = value.to(data.draw(st.sampled_from([torch.int32, torch.float16, torch.uint8, torch.bool])))
    elif kind == "reshape":
        container[key] = value.reshape(1, -1)
    elif kind == "noise":
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9), label="seed"))
        container[key] = torch.randint(0, 256, value.shape, generator=generator).to(value.dtype)


@EVERY_FORM
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_state_is_refused_whole_or_loads_to_something_that_steps(form, data):
    state_dict = copied(saved_in(form))
    for _ in range(data.draw(st.integers(1, 2))):
        damage(state_dict, data)
    optimizer = optimizer_with_state()
    before = copy.deepcopy(optimizer.state_dict())
    groups = [dict(group) for group in optimizer.param_groups]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.load_state_dict(state_dict)
    except ValueError as error:
        assert len(str(error)) > 20
        assert same(optimizer.state_dict(), before)
        assert all(same(dict(now), then) for now, then in zip(optimizer.param_groups, groups, strict=True))
    step(optimizer)


@EVERY_FORM
@pytest.mark.parametrize("to", ["torch_bnb", "torch", "bitsandbytes"])
@settings(max_examples=25)
@given(data=st.data())
def test_a_damaged_state_is_refused_or_converted(form, to, data):
    state_dict = copied(saved_in(form))
    damage(state_dict, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            converted = bnb.checkpoint.convert(state_dict, to=to, rule="adamw")
        except ValueError as error:
            assert len(str(error)) > 20
        else:
            assert converted.keys() == {"state", "param_groups"}


@EVERY_FORM
def test_the_undamaged_states_load(form):
    optimizer = optimizer_with_state()
    optimizer.load_state_dict(saved_in(form))
    assert optimizer.state_dict()["state"][0]["step"] == 2
    step(optimizer)


WRONG = [
    ("bitsandbytes", lambda entry: entry.pop("absmax1"), "parameter 0: 'state1' is in 8 bits and lacks its absmax"),
    ("bitsandbytes", lambda entry: entry.update(max1=torch.ones(1)), r"\['max1'\] belong to old versions'"),
    ("bitsandbytes", lambda entry: entry.pop("state2"), "'state2' must be a tensor, got None"),
    ("bitsandbytes", lambda entry: entry.update(absmax1=torch.ones(3)), "'state1': 3 absmax do not fit 4096 codes"),
    ("bitsandbytes", lambda entry: entry.update(qmap1=torch.ones(3)), r"the code map must have shape \(256,\)"),
    ("torch.optim", lambda entry: entry.update(exp_avg=7), "parameter 0: 'exp_avg' must be a tensor, got 7"),
    ("torch.optim", lambda entry: entry.update(max_exp_avg_sq=entry["exp_avg"]), "trained with amsgrad=True"),
    ("torch.optim", lambda entry: entry.update(step=torch.tensor(1.5)), "'step' must be a number of steps, got"),
    ("torchao", lambda entry: setattr(entry["exp_avg"], "signed", False), "'exp_avg': signed is False, expected True"),
]


@pytest.mark.parametrize(("form", "do", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_the_entry_that_is_wrong_is_named(form, do, message):
    state_dict = copied(saved_in(form))
    entry = state_dict["state"][0]
    if form == "torchao":
        entry["exp_avg"] = torch.Tensor._make_wrapper_subclass(type(entry["exp_avg"]), (64, 64))
        vars(entry["exp_avg"]).update(vars(saved_in(form)["state"][0]["exp_avg"]))
    do(entry.get("__bnb_optimizer_quant_state__", entry))
    optimizer = optimizer_with_state()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state_dict)
    assert same(optimizer.state_dict(), before)


@pytest.mark.parametrize("kind", ["OptimState4bit", "OptimStateFp8"])
def test_torchaos_other_states_are_named(kind):
    state_dict = copied(saved_in("torchao"))
    stand_in = next(cls for cls, name in STAND_INS if name.endswith(kind))
    state_dict["state"][0]["exp_avg"] = torch.Tensor._make_wrapper_subclass(stand_in, (64, 64))
    with pytest.raises(ValueError, match=f"'exp_avg' is {kind}: only the 8-bit states of torchao can be read"):
        optimizer_with_state().load_state_dict(state_dict)


def test_what_a_users_hook_throws_leaves_the_optimizer_as_it_was():
    optimizer = optimizer_with_state()
    before = copy.deepcopy(optimizer.state_dict())

    def fail(_):
        raise RuntimeError("no")

    optimizer.register_load_state_dict_post_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        optimizer.load_state_dict(saved_in("8 bits"))
    assert same(optimizer.state_dict(), before)


@functools.cache
def saved_bytes():
    file = io.BytesIO()
    torch.save(saved_in("8 bits"), file)
    return file.getvalue()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_error_that_names_it(share, tmp_path):
    path = tmp_path / "short.pt"
    path.write_bytes(saved_bytes()[: int(share * len(saved_bytes()))])
    with pytest.raises(ValueError, match=r"short.pt: it is damaged or no checkpoint") as caught:
        bnb.checkpoint.load(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_changes_nothing(share, bit, tmp_path):
    path, changed = tmp_path / "flipped.pt", bytearray(saved_bytes())
    changed[int(share * len(changed))] ^= 1 << bit
    path.write_bytes(changed)
    try:
        loaded = bnb.checkpoint.load(path)
    except ValueError as error:
        assert "flipped.pt: it " in str(error) and "\n" not in str(error)
    else:
        assert same(loaded, saved_in("8 bits"))


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    changed = bytearray(saved_bytes())
    at = changed.find(saved_in("8 bits")["state"][0]["exp_avg_codes"].numpy().tobytes())
    changed[at + 1000] ^= 1
    (tmp_path / "flipped.pt").write_bytes(changed)
    assert torch.load(tmp_path / "flipped.pt", weights_only=True), "torch does not look"
    with pytest.raises(ValueError, match=r"flipped.pt: it is damaged: the checksum of .*/data/\d+ is wrong"):
        bnb.checkpoint.load(tmp_path / "flipped.pt")


def test_an_entry_that_says_it_is_a_folder_is_found(tmp_path):
    """torch reads nothing for it, so a tensor would be whatever was in its memory."""
    path, changed = tmp_path / "flipped.pt", bytearray(saved_bytes())
    name = b"archive/data/2"
    in_directory = changed.rindex(name)
    changed[in_directory - 8] ^= 0x10  # the attributes, in the entry of the zip's directory (APPNOTE.TXT 4.3.12)
    path.write_bytes(changed)
    assert torch.load(path, weights_only=True), "torch does not look"
    with pytest.raises(ValueError, match=r"flipped.pt: it is damaged: archive/data/2 is marked as a folder"):
        bnb.checkpoint.load(path)


@pytest.mark.slow
def test_no_flipped_bit_outside_the_tensors_changes_anything(tmp_path):
    """What hypothesis samples below the tensors' checksums, all of it: headers, pickle, directory."""
    path, saved = tmp_path / "flipped.pt", saved_bytes()
    inside = set()
    for state in saved_in("8 bits")["state"].values():
        for value in state.values():
            if torch.is_tensor(value) and value.numel() > 1:
                body = value.numpy().tobytes()
                inside.update(range(saved.index(body), saved.index(body) + len(body)))
    places = sorted(set(range(len(saved))) - inside)
    assert 3000 < len(places) < 6000
    for at, bit in itertools.product(places, range(8)):
        changed = bytearray(saved)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):
            assert same(bnb.checkpoint.load(path), saved_in("8 bits")), f"bit {bit} of byte {at}"


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_hostile_file_runs_nothing(tmp_path, legacy):
    path, proof = tmp_path / "hostile.pt", tmp_path / "ran"
    torch.save({"state": {}, "param_groups": [Hostile(proof)]}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"hostile.pt: it refers to (posix|nt).system"):
        bnb.checkpoint.load(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the file is as hostile as it looks"


def test_a_plain_pickle_runs_nothing(tmp_path):
    path, proof = tmp_path / "hostile.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Hostile(proof)))
    with pytest.raises(ValueError, match=r"hostile.pkl: it "):
        bnb.checkpoint.load(path)
    assert not proof.exists()


def test_a_checkpoint_that_holds_itself_is_an_error(tmp_path):
    endless = [trap := {"state": 1}]
    trap["more"] = endless
    bnb.checkpoint.save(endless, tmp_path / "endless.pt")
    content = bnb.checkpoint.load(tmp_path / "endless.pt")
    with pytest.raises(ValueError, match="something in it holds itself"):
        bnb.checkpoint.describe(content)
    with pytest.raises(ValueError, match="something in it holds itself"):
        bnb.checkpoint.convert_nested(content, "torch")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00.", bytes(1000)], ids=repr)
def test_what_is_no_checkpoint_is_called_so(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file: it is (damaged or )?no checkpoint of torch.save"):
        bnb.checkpoint.load(path)


def test_an_ordinary_zip_is_called_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.txt", "hello")
    with pytest.raises(ValueError, match=r"a.zip: it is damaged or no checkpoint"):
        bnb.checkpoint.load(tmp_path / "a.zip")
    with pytest.raises(FileNotFoundError):
        bnb.checkpoint.load(tmp_path / "missing.pt")


def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "last.pt"
    bnb.checkpoint.save({"number": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        bnb.checkpoint.save({"number": 2, "values": torch.zeros(1000), "function": lambda: 0}, path)
    assert bnb.checkpoint.load(path) == {"number": 1}
    assert os.listdir(tmp_path) == ["last.pt"]
    with pytest.raises(FileNotFoundError):
        bnb.checkpoint.save({}, tmp_path / "missing" / "last.pt")


def test_a_saved_file_has_the_usual_mode_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.pt").symlink_to(tmp_path / "last.pt")
    (tmp_path / "other").touch()
    bnb.checkpoint.save({"number": 1}, tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert (tmp_path / "last.pt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_killed_process_leaves_the_last_checkpoint_complete(tmp_path):
    """Real processes that save in a loop, killed at random points: no number is lost once it was there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch_bnb", "pytest"])
    path, last, chance = tmp_path / "last.pt", 0, random.Random(0)
    for _ in range(12):
        process = context.Process(target=saver.keep_saving, args=(path, last + 1))
        process.start()
        try:
            give_up = time.monotonic() + 60
            while time.monotonic() < give_up and (not path.exists() or bnb.checkpoint.load(path)["number"] <= last):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.03))
        finally:
            process.kill()
            process.join()
        saved = bnb.checkpoint.load(path)
        assert saved["number"] > last
        assert torch.equal(saved["values"], torch.full((500_000,), float(saved["number"])))
        last = saved["number"]
    assert list(tmp_path.glob(".last.pt.*.partial")), "some were killed while they wrote"
