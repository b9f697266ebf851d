"""State in host memory. Without a GPU, streams are queues that a test empties in any order that their marks allow."""

import copy
import functools
import itertools
import math
import random
import re

import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st

import torch_bnb as bnb
from torch_bnb.optim import host, paging
from torch_bnb.optim.paging import Extent, Lanes, chunks

SHAPES = [(40, 200), (3000,), (1,), (5000,), (0, 4), (7, 3), (24, 256)]
EXTENTS = st.lists(
    st.builds(Extent, st.integers(0, 5000), st.sampled_from([1, 200, 256, 10**6]), st.integers(0, 9000)), max_size=8
)


@given(EXTENTS, st.integers(1, 5000))
def test_chunks_cover_everything_once_and_in_order(extents, limit):
    planned = chunks(extents, limit)
    pieces = list(itertools.chain.from_iterable(planned))
    assert [index for index, _ in itertools.groupby(piece.index for piece in pieces)] == list(range(len(extents)))
    for index, (numel, unit, _) in enumerate(extents):
        own = [(piece.begin, piece.end) for piece in pieces if piece.index == index]
        assert own[0][0] == 0 and own[-1][1] == numel
        assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(own))
        assert all(begin % unit == 0 for begin, _ in own)
    assert all(len({piece.index for piece in chunk}) == len(chunk) > 0 for chunk in planned)


@given(EXTENTS, st.integers(1, 5000))
def test_a_chunk_is_small_or_a_single_unit(extents, limit):
    def units(piece):
        return math.ceil((piece.end - piece.begin) / extents[piece.index].unit)

    def nbytes(piece):
        numel, unit, total = extents[piece.index]
        return units(piece) * math.ceil(total / max(1, math.ceil(numel / unit)))

    planned = chunks(extents, limit)
    for chunk in planned:
        weighty = [piece for piece in chunk if nbytes(piece) > 0]
        assert sum(map(nbytes, chunk)) <= limit or (len(weighty) == 1 and units(weighty[0]) == 1)
    for chunk, following in itertools.pairwise(planned):  # no room is left for what comes next
        assert sum(map(nbytes, chunk)) + nbytes(following[0]) / max(1, units(following[0])) > limit


class Mark:
    passed = False

    def set(self):
        self.passed = True


class Queue:
    """A stream whose work is put off."""

    def __init__(self, heeds=True):
        self.waiting = []
        self.heeds = heeds

    def do(self, work):
        self.waiting.append((None, work))

    def mark(self):
        mark = Mark()
        self.waiting.append((None, mark.set))
        return mark

    def wait(self, mark):
        if self.heeds:
            self.waiting.append((mark, lambda: None))

    def is_ready(self):
        return bool(self.waiting) and (self.waiting[0][0] is None or self.waiting[0][0].passed)

    def advance(self):
        with torch.no_grad():
            self.waiting.pop(0)[1]()


class Device:
    """Three queues, and a random order in which they get on."""

    def __init__(self, seed, heeds=True):
        self.random = random.Random(seed)
        self.lanes = Lanes(*(Queue(heeds) for _ in range(3)))

    def work_off(self):
        """Until nothing is left to do."""
        while any(lane.waiting for lane in self.lanes):
            self.random.choice([lane for lane in self.lanes if lane.is_ready()]).advance()

    def work_off_stepping(self):
        """Until that lane has nothing left to do. The others get on only where it waits for them."""
        while self.lanes.stepping.waiting:
            others = [lane for lane in self.lanes if lane.is_ready()]
            lane = self.lanes.stepping if self.lanes.stepping.is_ready() else self.random.choice(others)
            lane.advance()

    def dawdle(self):
        for _ in range(self.random.randrange(40)):
            if ready := [lane for lane in self.lanes if lane.is_ready()]:
                self.random.choice(ready).advance()


def pretend(patch, device):
    """Makes parameters on the CPU such that are on another device than state_device="cpu"."""
    patch.setattr(host, "is_away", lambda config, parameter: config["state_device"] == "cpu")
    patch.setattr(host, "settle", lambda state: device.work_off())
    patch.setattr(paging, "lanes_of", lambda _: device.lanes)
    patch.setattr(paging, "CHUNK_BYTES", 1500)
    return device


@pytest.fixture
def paged(monkeypatch):
    return functools.partial(pretend, monkeypatch)


def model(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]


def give_grads(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def trained(build, device, steps=3, **options):
    """Parameters and optimizer after some steps. Of a device, nothing need have happened when a step returns."""
    params = model()
    optimizer = build(params, **options)
    for step in range(steps):
        give_grads(params, step)
        optimizer.step()
        if device:
            device.dawdle()
    return params, optimizer


def same(a, b):
    return same_state(a[1].state_dict(), b[1].state_dict()) and all(map(torch.equal, a[0], b[0]))


def same_state(a, b):
    ours, theirs = a["state"], b["state"]
    assert ours.keys() == theirs.keys() and all(ours[i].keys() == theirs[i].keys() for i in ours)
    tensors = [(x, theirs[i][key]) for i, entry in ours.items() for key, x in entry.items() if torch.is_tensor(x)]
    assert tensors
    if [entry["step"] for entry in ours.values()] != [entry["step"] for entry in theirs.values()]:
        return False
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in tensors)  # a history is NaN where it is empty


OPTIONS = {
    "8 bits": {"optim_bits": 8},
    "32 bits": {"optim_bits": 32},
    "rows": {"optim_bits": 8, "block_grid": "rows"},
    "one absmax": {"optim_bits": 8, "block_wise": False},
    "stochastic": {"optim_bits": 8, "state_rounding": "stochastic", "seed": 3},
    "stochastic rows": {"optim_bits": 8, "state_rounding": "stochastic", "block_grid": "rows"},
    "max_unorm": {"optim_bits": 8, "max_unorm": 0.1},
    "clipping": {"optim_bits": 8, "percentile_clipping": 50},
    "zeros": {"optim_bits": 8, "skip_zeros": True, "maximize": True},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("rule", CASES)
def test_chunks_that_come_and_go_make_the_same_bits(rule, option, paged):
    case = CASES[rule]
    options = {"lr": case.lr, "min_8bit_size": 256, **case.configs[1], **OPTIONS[option]}
    plain = trained(case.optimizer, None, **options)
    device = paged(Device(seed=len(rule) + len(option)))
    assert same(trained(case.optimizer, device, state_device="cpu", **options), plain)


@given(seed=st.integers(0, 2**32))
def test_in_any_order_of_the_streams(seed):
    options = {"lr": 0.1, "optim_bits": 8, "min_8bit_size": 256}
    plain = trained(bnb.optim.AdamW, None, **options)
    with pytest.MonkeyPatch.context() as patch:
        device = pretend(patch, Device(seed))
        assert same(trained(bnb.optim.AdamW, device, state_device="cpu", **options), plain)


def test_streams_that_did_not_wait_would_be_noticed(paged):
    options = {"lr": 0.1, "optim_bits": 8, "min_8bit_size": 256}
    plain = trained(bnb.optim.AdamW, None, **options)
    device = paged(Device(seed=0, heeds=False))
    assert not same(trained(bnb.optim.AdamW, device, state_device="cpu", **options), plain)


def test_what_follows_a_step_follows_its_last_copy(paged):
    """So the allocator may hand out the chunks' memory again, and the next step finds its state."""
    plain = trained(bnb.optim.AdamW, None, steps=1, optim_bits=8)
    device = paged(Device(seed=5))
    params = model()
    optimizer = bnb.optim.AdamW8bit(params, state_device="cpu")
    give_grads(params, 0)
    optimizer.step()
    device.work_off_stepping()
    kept = {i: optimizer.state[p] for i, p in enumerate(params)}
    assert same_state({"state": kept}, plain[1].state_dict())
    assert not any(lane.waiting for lane in device.lanes)


def test_no_copy_is_ahead_of_what_the_device_does_before_the_step(paged):
    """It may still use the memory that the allocator has given to the chunks."""
    device = paged(Device(seed=3))
    params = model()
    optimizer = bnb.optim.AdamW8bit(params, state_device="cpu")
    give_grads(params, 0)
    device.lanes.stepping.do(lambda: None)
    optimizer.step()
    assert not device.lanes.arriving.is_ready() and not device.lanes.leaving.is_ready()
    device.lanes.stepping.advance()
    device.lanes.stepping.advance()  # the mark
    assert device.lanes.arriving.is_ready()


@pytest.mark.parametrize("which", [1, 0], ids=["at a step", "at a copy"])
def test_an_error_leaves_no_memory_in_use(which, paged):
    device = paged(Device(seed=1))
    params = model()
    optimizer = bnb.optim.AdamW8bit(params, state_device="cpu")
    give_grads(params, 0)
    arriving, stepping, leaving = device.lanes
    failing = (arriving, stepping, leaving)[which]
    before = iter(range(3))

    def fail(work):  # when some of the work has been launched
        Queue.do(failing, work)
        if next(before, None) is None:
            raise RuntimeError("enough")

    failing.do = fail
    with pytest.raises(RuntimeError, match="enough"):
        optimizer.step()
    device.work_off_stepping()
    assert not arriving.waiting and not leaving.waiting


class Now:
    """A stream that does everything at once."""

    def do(self, work):
        work()

    def mark(self):
        return None

    def wait(self, mark):
        pass


@pytest.fixture
def meta_for_a_gpu(monkeypatch):
    """Parameters on meta have their state on the CPU: what mixes the two up is an error. Nothing is in the numbers."""

    def copied(home, tensor):
        new = torch.empty(tensor.shape, dtype=tensor.dtype, device=home.device)
        return new if tensor.is_meta else new.copy_(tensor)

    def copy_state_to(chunk, other, before=paging.Chunk.copy_state_to):
        if not any(tensor.is_meta for tensor in chunk.values):
            before(chunk, other)

    monkeypatch.setattr(host, "is_away", lambda config, parameter: host.on_host(config) and parameter.is_meta)
    monkeypatch.setattr(host.Home, "copy", copied)
    monkeypatch.setattr(paging, "lanes_of", lambda _: Lanes(Now(), Now(), Now()))
    monkeypatch.setattr(paging.Chunk, "copy_state_to", copy_state_to)
    monkeypatch.setattr(bnb.monitor, "_on_host", lambda sums: [[0.0] * len(found) for found in sums])

    def params():
        found = [torch.empty(shape, device="meta").requires_grad_() for shape in SHAPES]
        for p in found:
            p.grad = torch.empty_like(p)
        return found

    return params


def devices(optimizer):
    moments = [(k, v) for entry in optimizer.state.values() for k, v in entry.items() if torch.is_tensor(v)]
    return {v.device.type for k, v in moments if k != "grad_norms"}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("rule", CASES)
def test_state_is_on_the_host_and_all_else_on_the_device(rule, option, meta_for_a_gpu):
    case = CASES[rule]
    options = {"lr": case.lr, "min_8bit_size": 256, **case.configs[1], **OPTIONS[option]}
    optimizer = case.optimizer(meta_for_a_gpu(), state_device="cpu", **options)
    optimizer.step()
    bnb.monitor.measure(optimizer)
    optimizer.step()
    assert devices(optimizer) == {"cpu"}
    again = case.optimizer(meta_for_a_gpu(), state_device="cpu", **options)
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        entry.update({key: torch.zeros(100) for key in entry if key == "grad_norms"})
    again.load_state_dict(saved)
    assert devices(again) == {"cpu"}
    assert all(entry["grad_norms"].is_meta for entry in again.state.values() if "grad_norms" in entry)
    again.step()
    for group in again.param_groups:
        group["state_device"] = None
    again.step()
    assert devices(again) == {"meta"}
    for group in again.param_groups:
        group["state_device"], group["optim_bits"] = torch.device("cpu"), 40 - group["optim_bits"]
    again.step()
    assert devices(again) == {"cpu"}


def test_nobody_asks_whether_memory_is_locked_where_it_need_not_be():
    """A DTensor of older versions of torch cannot say."""

    class Unasked:
        device = torch.device("cpu")

    tensor = Unasked()
    assert host.Home(torch.device("cpu")).take(tensor) is tensor


def hint_32_bits(params, optimizer):
    bnb.optim.GlobalOptimManager.get_instance().override_config(params[3], "optim_bits", 32)
    return optimizer


def load_again(params, optimizer):
    again = bnb.optim.AdamW8bit(params, state_device="cpu")
    again.load_state_dict(optimizer.state_dict())
    return again


def copy_it(params, optimizer):
    again = copy.deepcopy(optimizer)
    for mine, its in zip(params, again.param_groups[0]["params"], strict=True):
        assert torch.equal(mine, its)
    return optimizer


def measure_it(params, optimizer):
    assert bnb.monitor.measure(optimizer).total.update_to_weight > 0
    return optimizer


@pytest.mark.parametrize("meanwhile", [hint_32_bits, load_again, copy_it, measure_it])
@pytest.mark.parametrize("seed", range(5))
def test_what_reads_the_state_waits_for_the_copies(meanwhile, seed, paged, manager):
    results = []
    for device in (None, paged(Device(seed))):
        manager.initialize()
        params = model()
        optimizer = bnb.optim.AdamW8bit(params, lr=0.1, state_device="cpu" if device else None)
        for step in range(4):
            give_grads(params, step)
            optimizer.step()
            if device:
                device.dawdle()
            if step == 1 and device is None and meanwhile is not hint_32_bits:
                continue
            if step == 1:
                optimizer = meanwhile(params, optimizer)
        results.append((params, optimizer))
    assert same(results[1], results[0])


def test_state_that_a_framework_has_moved_is_prepared_anew(paged):
    device = paged(Device(seed=2))
    params = model()
    optimizer = bnb.optim.AdamW8bit(params, state_device="cpu")
    for step in range(2):
        give_grads(params, step)
        optimizer.step()
        device.work_off()
    kept = optimizer._plan
    optimizer.step()
    assert optimizer._plan is kept
    device.work_off()
    for entry in optimizer.state.values():
        entry.update({key: value.to("meta") for key, value in entry.items() if torch.is_tensor(value)})
    with pytest.raises(ValueError, match="is on meta, where it has no numbers; expected it on cpu"):
        optimizer.step()


def test_one_parameter_may_be_away(paged):
    device = paged(Device(seed=2))
    params = model()
    bnb.optim.GlobalOptimManager.get_instance().override_config(params[3], "state_device", "cpu")
    optimizer = bnb.optim.AdamW8bit(params)
    give_grads(params, 0)
    optimizer.step()
    codes = {i: optimizer.state[p].get("exp_avg_codes") for i, p in enumerate(params)}
    assert (codes[0] != 127).any() and (codes[3] == 127).all()
    device.work_off()
    assert (codes[3] != 127).any()


def test_a_checkpoint_does_not_say_where_state_is():
    params = model()
    paged, plain = bnb.optim.PagedAdamW8bit(params), bnb.optim.AdamW8bit(params)
    plain.load_state_dict(paged.state_dict())
    assert plain.param_groups[0]["state_device"] is None
    paged.load_state_dict(plain.state_dict())
    assert paged.param_groups[0]["state_device"] == "cpu"


@pytest.mark.parametrize("value", ["cuda", torch.device("cuda:1"), 0, "host"])
def test_other_places_are_refused(value):
    with pytest.raises(ValueError, match=rf"state_device={re.escape(repr(value))}: expected 'cpu' or None"):
        bnb.optim.AdamW(model(), state_device=value)


def test_what_does_not_go_together_is_refused(paged):
    paged(Device(seed=0))
    table = torch.randn(20, 300).requires_grad_()
    table.grad = torch.sparse_coo_tensor(torch.tensor([[3]]), torch.ones(1, 300), (20, 300), check_invariants=False)
    with pytest.raises(NotImplementedError, match=r"parameter 0 .* state_device='cpu' takes no sparse gradient"):
        bnb.optim.PagedAdamW8bit([table]).step()
    table.grad = torch.ones(20, 300)
    with pytest.raises(NotImplementedError, match="state_device='cpu' and capturable=True do not go together"):
        bnb.optim.PagedAdamW8bit([table], capturable=True).step()


def test_the_plan_of_memory_tells_what_is_on_the_host():
    model = torch.nn.Linear(256, 256, bias=False)
    memory = bnb.plan(model, bnb.optim.PagedAdamW8bit)
    assert memory.total.state_on_host == memory.total.planned > 0
    assert "130.00 KiB of the state are kept in host memory (state_device='cpu')" in str(memory)
    assert bnb.plan(model).total.state_on_host == 0 and "host memory" not in str(bnb.plan(model))
