"""What the CUDA kernels compute, without a GPU: csrc/cuda on the host against the CPU's kernels, bit for bit.

They are the files that nvcc compiles, kernels and launches alike. A GPU that runs on the host (tests/gpu_on_host) has
threads that meet in shuffles and barriers and take turns in a drawn order. What it cannot show: several blocks at once,
streams, the GPU's memory and its arithmetic.
"""

from functools import partial

import pytest
import torch
from calls import DTYPES, a_call, clone, same_bits
from cases import CASES, CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_bnb as bnb
from torch_bnb import ops

pytestmark = pytest.mark.usefixtures("emulated")

EMULATED = torch.ops.torch_bnb_emulated
GPU = torch.ops.gpu_on_host


def assert_agree(name, tensors, scalars, **options):
    params, grads, states, absmax = tensors
    ours, theirs = [clone(params), clone(states), clone(absmax)], [clone(params), clone(states), clone(absmax)]
    ops.update(name, ours[0], grads, ours[1], ours[2], scalars, **options)
    getattr(EMULATED, name)(theirs[0], grads, theirs[1], theirs[2], **scalars, **options)
    for ours_now, theirs_now, before in zip(ours, theirs, (params, states, absmax), strict=True):
        for i, (a, b) in enumerate(zip(ours_now, theirs_now, strict=True)):
            assert same_bits(a, b), f"{name}: tensor {i}: {(a != b).sum()} of {a.numel()} differ"
            assert a.shape == before[i].shape
    assert any(not torch.equal(a, b) for a, b in zip(ours[0], params, strict=True))


SIZES = (700, 1, 256, 3, 1023, 4, 511, 2048)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_every_rule_in_every_dtype(name, config, bits):
    dtypes = [DTYPES[i % 4] for i in range(len(SIZES))]
    tensors, scalars = a_call(name, config, SIZES, dtypes, bits)
    sign = -1.0 if config.get("maximize") else 1.0
    assert_agree(name, tensors, scalars, grad_scale=sign)


ONE_DTYPE = (2560, 700, 256, 4, 512, 1023, 256, 2048, 256)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_every_rule_in_one_dtype(name, config, dtype, bits):
    """As nearly all parameters are, for which there are kernels that take more for granted."""
    tensors, scalars = a_call(name, config, ONE_DTYPE, [dtype] * len(ONE_DTYPE), bits)
    assert_agree(name, tensors, scalars)


@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("option", [{"max_unorm": 1e-3}, {"grad_scales": torch.linspace(0.1, 2, len(ONE_DTYPE))}])
def test_options_and_misaligned_tensors_in_one_dtype(option, offset):
    tensors, scalars = a_call("adamw", {}, ONE_DTYPE, [torch.bfloat16] * len(ONE_DTYPE), offset=offset)
    assert_agree("adamw", tensors, scalars, **option)


OPTIONS = {
    "skip_zeros": {"skip_zeros": True},
    "max_unorm": {"max_unorm": 1e-3},
    "scales": {"grad_scales": torch.linspace(0.1, 2, len(SIZES))},
    "stochastic": {"stochastic_weights": True, "stochastic_states": [0], "seed": 7, "keys": list(range(len(SIZES)))},
    "everything": {"skip_zeros": True, "max_unorm": 0.1, "stochastic_weights": True, "seed": -1, "keys": [5 << 32] * 8},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_option(name, option):
    dtypes = [DTYPES[(i + 1) % 4] for i in range(len(SIZES))]
    for block_wise in (True, False):
        config = {"momentum": 0.9} if "momentum" in CASES[name].optimizer.options else {}
        tensors, scalars = a_call(name, config, SIZES, dtypes, block_wise=block_wise)
        if "skip_zeros" in OPTIONS[option]:
            tensors[1][0][100:300] = 0
            tensors[1][4].zero_()  # a block without any gradient is not touched at all
        assert_agree(name, tensors, scalars, **OPTIONS[option])


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_all_states_rounded_stochastically(name):
    tensors, scalars = a_call(name, {}, (4096, 300), DTYPES[:2])
    indices = list(range(len(CASES[name].optimizer.states)))
    assert_agree(name, tensors, scalars, stochastic_states=indices, seed=3, keys=[1 << 32, 2 << 32 | 1])


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(CASES)),
    sizes=st.lists(st.integers(0, 900), min_size=1, max_size=40),
    seed=st.integers(0, 2**16),
    offset=st.integers(0, 3),
)
def test_any_sizes_in_as_many_launches_as_they_need_and_misaligned(name, sizes, seed, offset):
    sizes = [*sizes, 5]
    dtypes = [DTYPES[(i + seed) % 4] for i in range(len(sizes))]
    tensors, scalars = a_call(name, {}, sizes, dtypes, seed=seed, offset=offset)
    tensors[0] = [torch.nn.functional.pad(p, (offset, 0))[offset:] for p in tensors[0]]
    assert_agree(name, tensors, scalars)


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_more_blocks_than_threads_that_add_them_up(name):
    tensors, scalars = a_call(name, {}, (2**21 + 777, 300), DTYPES[:2], block_wise=name == "lamb")
    assert_agree(name, tensors, scalars, max_unorm=1e-2)


def sums_of(library, name, tensors, scalars, **options):
    sums = torch.zeros(len(tensors[0]), 3, dtype=torch.float64)
    getattr(library, name)(*tensors, sums, **scalars, **options)
    return sums


@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_tensor_cut_into_rows(name):
    # Rows of 300 are two blocks each; the parts are rows 3 and 4 of a tensor with rows of 900, and their columns.
    parts = [torch.randn(600), torch.randn(600)]
    tensors, scalars = a_call(name, {}, (600, 600), (torch.float32, torch.bfloat16))
    optimizer_states = len(CASES[name].optimizer.states)
    tensors[1] = parts
    for k in range(optimizer_states * 2):
        if tensors[2][k].dtype == torch.uint8:
            tensors[3][k] = torch.rand(4)
    options = {
        "rows": [300, 300],
        "row_strides": [900, 900],
        "origins": [2**32 - 100, 3000],  # random bits of an element are those of its place in the whole tensor
        "stochastic_weights": True,
        "stochastic_states": [0],
        "keys": [9, 10],
        "max_unorm": 1e-4,
    }
    own, theirs = torch.ops.torch_bnb_measure, torch.ops.torch_bnb_emulated_measure
    first = sums_of(own, name, tensors, scalars, **options)
    torch.testing.assert_close(first, sums_of(theirs, name, tensors, scalars, **options), rtol=1e-14, atol=0)
    norms = ops.norms_of(first, 1e-4)
    second = sums_of(own, name, tensors, scalars, norms=norms, **options)
    torch.testing.assert_close(
        second, sums_of(theirs, name, tensors, scalars, norms=norms, **options), rtol=1e-14, atol=0
    )
    norms = ops.norms_of(second, 1e-4)
    assert (norms[:, 2] < 1).any()
    assert_agree(name, tensors, scalars, norms=norms, **options)


def test_the_calls_above_took_many_launches():
    assert GPU.capacity() < len(SIZES)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_the_same_blocks(value):
    tensors, scalars = a_call("adamw", {}, (1024,), [torch.float32])
    tensors[1][0][300] = value
    params, grads, states, absmax = tensors
    ours, theirs = [clone(params), clone(states), clone(absmax)], [clone(params), clone(states), clone(absmax)]
    ops.update("adamw", ours[0], grads, ours[1], ours[2], scalars)
    EMULATED.adamw(theirs[0], grads, theirs[1], theirs[2], **scalars)
    assert same_bits(ours[0][0], theirs[0][0])
    for k in range(2):
        assert same_bits(ours[2][k], theirs[2][k]) and not ours[2][k][1].isfinite()
        assert torch.equal(ours[1][k][:256], theirs[1][k][:256])  # a block that is not finite has any codes


@pytest.mark.parametrize("signed", [True, False])
def test_the_codec_in_registers_is_the_codec(signed):
    assert GPU.wrong_near_edges(signed) == 0
    assert GPU.wrong_numbers(signed, 1013) == 0


@pytest.mark.slow
@pytest.mark.parametrize("signed", [True, False])
def test_the_codec_in_registers_is_the_codec_for_every_float(signed):
    assert GPU.wrong_numbers(signed, 1) == 0


@pytest.mark.parametrize("name", CASES)
def test_scalars_and_keys_that_the_device_reads(name):
    tensors, scalars = a_call(name, {}, SIZES, [torch.bfloat16] * len(SIZES))
    params, grads, states, absmax = tensors
    options = {"stochastic_weights": True, "stochastic_states": [0], "seed": 11}
    keys = [5 << 32 | i for i in range(len(SIZES))]
    results = []
    for run in (
        lambda *t: getattr(torch.ops.torch_bnb, name)(*t, **scalars, keys=keys, **options),
        lambda *t: getattr(torch.ops.torch_bnb, name).on_device(
            *t, scalars=torch.tensor(list(scalars.values())), moving_keys=torch.tensor(keys), **options
        ),
        lambda *t: getattr(EMULATED, name).on_device(
            *t, scalars=torch.tensor(list(scalars.values())), moving_keys=torch.tensor(keys), **options
        ),
    ):
        given = clone(params), grads, clone(states), clone(absmax)
        run(*given)
        results.append([*given[0], *given[2], *given[3]])
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))


@pytest.mark.parametrize("block_wise", [True, False])
def test_nothing_changes_where_an_infinity_was_found(block_wise):
    tensors, scalars = a_call("adamw", {}, (700,), [torch.float32], block_wise=block_wise)
    before = [clone(part) for part in tensors]
    for library in (torch.ops.torch_bnb, EMULATED):
        step = partial(library.adamw.on_device, scalars=torch.tensor(list(scalars.values())))
        step(*tensors, found_inf=torch.ones(1))
        assert all(
            torch.equal(a, b) for now, was in zip(tensors, before, strict=True) for a, b in zip(now, was, strict=True)
        )
        stepped = [clone(part) for part in tensors]
        step(*stepped, found_inf=torch.zeros(1))
        assert not torch.equal(stepped[0][0], before[0][0])


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("name", CASES)
def test_tensors_known_by_their_headers(name, bits):
    tensors, scalars = a_call(name, {}, SIZES, [torch.float32] * len(SIZES), bits)
    copies = [clone(part) for part in tensors]
    getattr(EMULATED, name)(*copies, **scalars)
    headers = ops.headers_of([t for part in tensors for t in part])
    getattr(EMULATED, name).by_address(headers.table, headers.tensors[0], **scalars)
    assert all(map(same_bits, tensors[0] + tensors[2] + tensors[3], copies[0] + copies[2] + copies[3]))


@pytest.mark.parametrize(("block_wise", "max_unorm"), [(True, 0.0), (True, 1e-3), (False, 0.0)])
@pytest.mark.parametrize("name", CASES)
def test_launches_of_a_step(name, block_wise, max_unorm):
    """One for all parameters that an argument holds; three more for norms, and one where an absmax is of a tensor."""
    count = GPU.capacity()
    tensors, scalars = a_call(name, {"momentum": 0.9} if name == "sgd" else {}, [512] * count, [DTYPES[0]] * count)
    if not block_wise:
        tensors[3] = [a[:1] for a in tensors[3]]
    before = GPU.launches()
    getattr(EMULATED, name)(*tensors, **scalars, max_unorm=max_unorm)
    measures = 3 * (name in ("lamb", "lars")) + 3 * (max_unorm > 0 or not block_wise)
    assert GPU.launches() - before == 1 + measures + (not block_wise)


@pytest.mark.parametrize(
    ("sizes", "dtypes", "launches"),
    [
        ((512,), (0,), 1),
        ((300,), (0,), 2),  # a block that is whole, and the rest
        ((200, 3), (0, 0), 1),
        ((512, 512, 512), (0, 1, 0), 2),
        ((700, 300), (1, 1), 2),
        ((700, 300), (0, 1), 1),  # gradients of the other's dtype
    ],
)
def test_a_launch_for_every_form(sizes, dtypes, launches):
    tensors, scalars = a_call("adamw", {}, sizes, [DTYPES[i] for i in dtypes])
    before = GPU.launches()
    assert_agree("adamw", tensors, scalars)
    assert GPU.launches() - before == launches


@pytest.mark.parametrize("name", CASES)
def test_whatever_the_order_of_threads_and_blocks_and_whatever_lies_in_fresh_memory(name):
    tensors, scalars = a_call(name, {}, SIZES, DTYPES * 2, block_wise=False)
    tensors[1][0][::7] = 0
    results = []
    for seed in range(6):
        GPU.draw_order(seed)
        torch.use_deterministic_algorithms(seed % 2 == 1)  # with it, torch fills fresh memory with NaN
        try:
            given = [clone(part) for part in tensors]
            getattr(EMULATED, name)(*given, **scalars, max_unorm=1e-3, skip_zeros=True)
        finally:
            torch.use_deterministic_algorithms(False)
        results.append([*given[0], *given[2], *given[3]])
    assert all(all(map(same_bits, results[0], other)) for other in results[1:])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("blocksize", [1, 64, 256, 1000, 4096])
def test_the_codec_of_tensors(signed, blocksize):
    values = torch.randn(5000) * 10 ** (torch.rand(5000) * -8)
    values = values if signed else values.square()
    values[1024:2048] = 0
    results = []
    for library in (torch.ops.torch_bnb_codec, torch.ops.torch_bnb_emulated_codec):
        codes, absmax = torch.zeros(5000, dtype=torch.uint8), torch.zeros(-(-5000 // blocksize))
        library.quantize_blockwise(values, codes, absmax, signed, blocksize)
        back = torch.zeros(5000)
        library.dequantize_blockwise(back, codes, absmax, signed, blocksize)
        results.append((codes, absmax, back))
    assert all(map(torch.equal, *results)) and results[0][1].any()


def test_a_training(monkeypatch):
    """The optimizers themselves, with these kernels for the CPU's."""
    parameters = []
    for library in (torch.ops.torch_bnb, EMULATED):
        monkeypatch.setattr(torch.ops, "torch_bnb", library)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 1))
        optimizer = bnb.optim.AdamW8bit(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(30):
            x = torch.randn(32, 64)
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 2
        parameters.append([p.detach() for p in model.parameters()])
    assert all(map(torch.equal, *parameters))


MISTAKES = {
    "barrier_not_for_all": "waits at __syncthreads, where not all of them come",
    "lane_left": "waits at __shfl_xor_sync, where not all of them come",
    "not_all_lanes": "waits at __shfl_xor_sync",
    "two_places": "waits at __",
}


def test_this_gpu_shows_mistakes():
    mistakes = torch.ops.gpu_on_host_mistakes
    right = sum(range(64))
    assert mistakes.none() == right
    for name, message in MISTAKES.items():
        with pytest.raises(RuntimeError, match=message):
            getattr(mistakes, name)()
        assert mistakes.none() == right  # the next launch is as ever
    sums = set()
    for seed in range(8):
        GPU.draw_order(seed)
        sums.add(mistakes.no_barrier())
    assert len(sums) > 1
