"""The CUDA kernels on a CUDA device, beside the CPU's. `make gpu` runs them; without a device they are skipped."""

import copy
from collections import Counter

import pytest
import torch
from calls import DTYPES, a_call, clone, same_bits
from cases import CASES, CONFIGS
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

import torch_bnb as bnb
from torch_bnb import ops
from torch_bnb.optim import paging

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

SIZES = (700, 1, 256, 3, 1023, 4, 511, 2048, 100_000)
MOST_DIFFERENT = 1e-4
"""Share of the elements that may get another code or last bit than on the CPU: both round every operation alike, but a
norm is a double that is added up in another order, and two instructions treat a NaN in their own way."""


def to(device, tensors):
    return [[t.to(device) if t.numel() else t for t in part] for part in tensors]


COUNTED = Counter()


@pytest.fixture(scope="module", autouse=True)
def counted(record_testsuite_property):
    """The report says how many elements were compared and how many differed."""
    yield
    for what, count in COUNTED.items():
        record_testsuite_property(what, count)


def assert_agree(ours, theirs):
    """(params, states, absmax) of both. How many elements differ is bounded, and by how much."""
    different = elements = 0
    for a, b in zip(ours, theirs, strict=True):
        b = b.cpu()
        elements += a.numel()
        if a.dtype == torch.uint8:
            away = (a.int() - b.int()).abs()
            assert away.max() <= 1
            different += int((away > 0).sum())
        elif not same_bits(a, b):
            different += int((a != b).sum())
            torch.testing.assert_close(a, b, rtol=1e-2 if a.element_size() == 2 else 1e-6, atol=1e-30)
    COUNTED.update({"elements compared with the CPU's": elements, "elements that differ": different})
    assert different <= MOST_DIFFERENT * elements, f"{different} of {elements}"


def both(name, tensors, scalars, **options):
    params, grads, states, absmax = tensors
    ours = [clone(params), grads, clone(states), clone(absmax)]
    theirs = to("cuda", tensors)
    ops.update(name, *ours, scalars, **options)
    if "grad_scales" in options:
        options = {**options, "grad_scales": options["grad_scales"].cuda()}
    ops.update(name, *theirs, scalars, **options)
    return [*ours[0], *ours[2], *ours[3]], [*theirs[0], *theirs[2], *theirs[3]]


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_every_rule_in_every_dtype(name, config, bits):
    tensors, scalars = a_call(name, config, SIZES, [DTYPES[i % 4] for i in range(len(SIZES))], bits)
    assert_agree(*both(name, tensors, scalars))


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_every_rule_in_one_dtype(name, config, dtype, bits):
    """As nearly all parameters are, for which there are kernels that take more for granted."""
    sizes = (*SIZES, 25_600, 256, 1024)
    tensors, scalars = a_call(name, config, sizes, [dtype] * len(sizes), bits)
    for option in ({}, {"grad_scales": torch.linspace(0.1, 2, len(sizes))}):
        assert_agree(*both(name, tensors, scalars, **option))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_many_blocks_that_a_warp_takes_several(dtype):
    sizes = (40_000_000, 256, 30_000_128)
    tensors, scalars = a_call("adamw", {}, sizes, [dtype] * 3)
    assert_agree(*both("adamw", tensors, scalars))


OPTIONS = {
    "skip_zeros": {"skip_zeros": True},
    "max_unorm": {"max_unorm": 1e-3},
    "scales": {"grad_scales": torch.linspace(0.1, 2, len(SIZES))},
    "stochastic": {"stochastic_weights": True, "stochastic_states": [0], "seed": 7, "keys": list(range(len(SIZES)))},
}


@pytest.mark.parametrize("block_wise", [True, False])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_option(name, option, block_wise):
    tensors, scalars = a_call(name, {}, SIZES, [DTYPES[i % 4] for i in range(len(SIZES))], block_wise=block_wise)
    tensors[1][0][100:300] = 0
    assert_agree(*both(name, tensors, scalars, **OPTIONS[option]))


def test_a_call_of_more_parameters_than_one_launch_takes():
    tensors, scalars = a_call("adamw", {}, [300] * 2000, [torch.float32] * 2000)
    assert_agree(*both("adamw", tensors, scalars))


def test_tensors_that_are_not_aligned():
    tensors, scalars = a_call("adamw", {}, (1000, 700), DTYPES[:2])
    ours = to("cuda", tensors)
    odd = [[torch.cat([t.new_zeros(3), t])[3:] if t.numel() else t for t in part] for part in ours]
    for given in (ours, odd):
        ops.update("adamw", *given, scalars)
    assert all(same_bits(a, b) for a, b in zip([*ours[0], *ours[2]], [*odd[0], *odd[2]], strict=True))


@pytest.mark.parametrize("signed", [True, False])
def test_the_codec(signed):
    x = torch.randn(100_003) * torch.logspace(-8, 2, 100_003)
    x = x if signed else x.abs()
    for blocksize in (256, 64, 4096, x.numel()):
        codes, absmax = bnb.codec.quantize_blockwise(x, signed, blocksize)
        theirs = bnb.codec.quantize_blockwise(x.cuda(), signed, blocksize)
        assert torch.equal(codes, theirs[0].cpu()) and torch.equal(absmax, theirs[1].cpu())
        back = bnb.codec.dequantize_blockwise(*theirs, signed, blocksize)
        assert torch.equal(bnb.codec.dequantize_blockwise(codes, absmax, signed, blocksize), back.cpu())


def model(device, count=3):
    torch.manual_seed(0)
    params = [torch.randn(128, 96) for _ in range(count)]
    grads = [torch.randn(128, 96) for _ in range(count)]
    params = [p.to(device).requires_grad_() for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.to(device)
    return params


def events_of_a_step_without_waiting(optimizer):
    """What the profiler sees during a second step. torch raises an error if it waits for the device.

    The profiler itself waits for the device when it stops, after the step.
    """
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        with profile(activities=activities) as profiler, record_function("the whole step"):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    events = profiler.events()
    step = next(e.time_range for e in events if e.name == "the whole step" and e.device_type == DeviceType.CPU)
    return [e.name for e in events if step.start <= e.time_range.start <= step.end]


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_nothing_and_copies_nothing(name):
    optimizer = CASES[name].optimizer(model("cuda"), optim_bits=8, lr=CASES[name].lr)
    names = events_of_a_step_without_waiting(optimizer)
    assert not [n for n in names if "Memcpy" in n or n in ("cudaDeviceSynchronize", "cudaStreamSynchronize")]
    launches = sum(n == "cudaLaunchKernel" for n in names)
    assert launches == (4 if optimizer.layerwise else 1)


@pytest.mark.parametrize("name", CASES)
def test_a_graph_repeats_the_step(name):
    """Twenty replays against twenty steps; the rate moves between them."""
    results = []
    for captured in (False, True):
        params = model("cuda")
        rate = torch.tensor(CASES[name].lr, device="cuda")
        config = {"state_rounding": "stochastic", "weight_rounding": "stochastic", "optim_bits": 8}
        optimizer = CASES[name].optimizer(params, lr=rate, capturable=True, **config)
        optimizer.step()  # makes the state
        graph = torch.cuda.CUDAGraph()
        if captured:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                optimizer.step()
        for step in range(20):
            rate.fill_(CASES[name].lr / (1 + step))
            graph.replay() if captured else optimizer.step()
        results.append([*params, optimizer.state[params[0]]["step"]])
    assert all(map(torch.equal, *results))
    assert results[1][-1] == 21


def test_a_first_step_in_a_capture_is_an_error():
    optimizer = bnb.optim.AdamW(model("cuda"), capturable=True)
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="take one before the graph is captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()


def test_another_stream():
    plain, streamed = model("cuda"), model("cuda")
    for params in (plain, streamed):
        optimizer = bnb.optim.AdamW(params, optim_bits=8)
        stream = torch.cuda.Stream() if params is streamed else torch.cuda.current_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(10):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, plain, streamed))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_parameters_on_several_devices():
    here, there = model("cuda:0"), model("cuda:1")
    optimizer = bnb.optim.AdamW([*here, *there], optim_bits=8)
    with torch.cuda.device(1):
        optimizer.step()
    optimizer.step()
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_training_and_its_checkpoint_on_both_devices(name):
    trained = []
    for device in ("cpu", "cuda"):
        params = model(device)
        optimizer = CASES[name].optimizer(params, lr=CASES[name].lr, optim_bits=8)
        for _ in range(5):
            optimizer.step()
        moved = [p.detach().cpu().requires_grad_() for p in params]
        for p, q in zip(params, moved, strict=True):
            q.grad = p.grad.cpu()
        resumed = CASES[name].optimizer(moved, lr=CASES[name].lr, optim_bits=8)
        resumed.load_state_dict(optimizer.state_dict())
        resumed.step()
        trained.append(moved)
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
        assert (a != b).float().mean() < 0.01


PAGED_OPTIONS = {
    "8 bits": {"optim_bits": 8},
    "32 bits": {"optim_bits": 32},
    "rows, stochastic": {"optim_bits": 8, "block_grid": "rows", "state_rounding": "stochastic"},
    "max_unorm": {"optim_bits": 8, "max_unorm": 0.1},
    "one absmax": {"optim_bits": 8, "block_wise": False},
    "clipping": {"optim_bits": 8, "percentile_clipping": 50},
}


@pytest.mark.parametrize("option", PAGED_OPTIONS)
@pytest.mark.parametrize("name", CASES)
def test_state_in_host_memory_makes_the_same_bits(name, option, monkeypatch):
    monkeypatch.setattr(paging, "CHUNK_BYTES", 10_000)
    results = []
    for place in (None, "cpu"):
        params = model("cuda", count=20)
        options = {"lr": CASES[name].lr, "state_device": place, **PAGED_OPTIONS[option]}
        optimizer = CASES[name].optimizer(params, **options)
        for _ in range(10):
            optimizer.step()
        results.append((params, optimizer.state_dict()["state"]))
    (params, plain), (others, paged) = results
    assert all(map(torch.equal, params, others))
    for index, entry in plain.items():
        for key, value in entry.items():
            if key == "grad_norms":
                assert torch.equal(paged[index][key].nan_to_num(), value.nan_to_num())
            elif torch.is_tensor(value):
                kept = paged[index][key]
                assert kept.device.type == "cpu" and kept.is_pinned() and torch.equal(kept, value.cpu())


def test_a_steps_memory_may_be_used_again_at_once(monkeypatch):
    """Also on another stream than the default one, and by a load that finds copies still under way."""
    monkeypatch.setattr(paging, "CHUNK_BYTES", 100_000)
    results = []
    for place in (None, "cpu"):
        params = model("cuda", count=50)
        optimizer = bnb.optim.AdamW8bit(params, state_device=place)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for step in range(10):
                optimizer.step()
                for _ in range(20):
                    torch.full((100_000,), 255, dtype=torch.uint8, device="cuda")
                if step == 5:
                    optimizer.load_state_dict(optimizer.state_dict())
        torch.cuda.current_stream().wait_stream(stream)
        results.append((params, [value.cpu() for value in tensors_of(optimizer)]))
    assert all(map(torch.equal, results[0][0], results[1][0]))
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_a_step_with_state_in_host_memory_waits_for_nothing():
    names = events_of_a_step_without_waiting(bnb.optim.PagedAdamW8bit(model("cuda")))
    copies = [name for name in names if name.startswith("Memcpy")]
    assert len([name for name in copies if "HtoD" in name]) == len([name for name in copies if "DtoH" in name]) == 12
    assert all("Pinned" in name for name in copies)


def test_state_goes_between_device_and_host_when_it_is_loaded_moved_or_hinted(manager):
    params = model("cuda")
    paged, plain = bnb.optim.PagedAdamW8bit(params), bnb.optim.AdamW8bit(params)
    paged.step()
    plain.load_state_dict(paged.state_dict())
    assert {value.device.type for value in tensors_of(plain)} == {"cuda"}
    paged.load_state_dict(plain.state_dict())
    assert all(value.is_pinned() for value in tensors_of(paged))
    for entry in paged.state.values():  # as frameworks do it
        entry.update({key: value.cuda() for key, value in entry.items() if torch.is_tensor(value)})
    paged.step()
    assert all(value.is_pinned() for value in tensors_of(paged))
    manager.override_config(params[0], "state_device", None)
    plain_again = copy.deepcopy(paged)
    paged.step()
    plain_again.step()
    assert paged.state[params[0]]["exp_avg_codes"].is_cuda
    assert all(value.is_pinned() for parameter in params[1:] for value in tensors_in(paged.state[parameter]))
    again = plain_again.param_groups[0]["params"]
    assert all(map(torch.equal, params, again))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(tensors_of(paged), tensors_of(plain_again), strict=True))


def test_a_paged_state_is_measured_while_it_is_away():
    optimizer = bnb.optim.PagedAdamW8bit(model("cuda"))
    optimizer.step()
    assert 0 < bnb.monitor.measure(optimizer).total.quantization_error < 0.1


def tensors_in(entry):
    return [value for value in entry.values() if torch.is_tensor(value)]


def tensors_of(optimizer):
    return [value for entry in optimizer.state_dict()["state"].values() for value in tensors_in(entry)]


@pytest.mark.slow
def test_indices_beyond_2_to_the_31():
    n = 2**31 + 300
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free device memory")
    parameter = torch.zeros(n, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    parameter.grad[-300:] = 1
    optimizer = bnb.optim.Lion([parameter], lr=0.5, optim_bits=8)
    optimizer.step()
    assert (parameter[-300:] == -0.5).all() and parameter[:-300].count_nonzero() == 0
