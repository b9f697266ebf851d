"""What the CUDA kernels compute, without a GPU: a warp emulated on the host against the CPU's kernels, bit for bit.

The loads, the arithmetic, the codec in registers, the rounding, the order within a block and the split into launches
are the files that nvcc compiles (csrc/cuda); a loop over 32 lanes stands for the warp. What it cannot show: shuffles,
launches, streams.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from calls import DTYPES, a_call, clone, same_bits
from cases import CASES, CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import cpp_extension

from torch_bnb import ops

ROOT = Path(__file__).parents[1]
LAUNCH_BYTES = 1024  # a few parameters fill it, so that the tests have calls of many launches


@pytest.fixture(scope="module", autouse=True)
def emulated(tmp_path_factory):
    library = tmp_path_factory.mktemp("emulated") / "emulated.so"
    torchs = Path(torch.__file__).parent / "lib"
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off"]
    command += [
        "-fvisibility=hidden",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f"-DBNB_LAUNCH_BYTES={LAUNCH_BYTES}",
    ]
    command += [f"-I{ROOT / 'csrc'}", *(f"-I{path}" for path in cpp_extension.include_paths())]
    command += [str(ROOT / "tests/emulated.cpp"), str(ROOT / "csrc/arguments.cpp"), "-o", str(library)]
    done = subprocess.run(
        [*command, f"-L{torchs}", "-ltorch", "-ltorch_cpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    torch.ops.load_library(library)
    return torch.ops.torch_bnb_emulated


def assert_agree(emulated, name, tensors, scalars, **options):
    params, grads, states, absmax = tensors
    ours, theirs = [clone(params), clone(states), clone(absmax)], [clone(params), clone(states), clone(absmax)]
    ops.update(name, ours[0], grads, ours[1], ours[2], scalars, **options)
    getattr(emulated, name)(theirs[0], grads, theirs[1], theirs[2], **scalars, **options)
    for ours_now, theirs_now, before in zip(ours, theirs, (params, states, absmax), strict=True):
        for i, (a, b) in enumerate(zip(ours_now, theirs_now, strict=True)):
            assert same_bits(a, b), f"{name}: tensor {i}: {(a != b).sum()} of {a.numel()} differ"
            assert a.shape == before[i].shape
    assert any(not torch.equal(a, b) for a, b in zip(ours[0], params, strict=True))


SIZES = (700, 1, 256, 3, 1023, 4, 511, 2048)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_every_rule_in_every_dtype(emulated, name, config, bits):
    dtypes = [DTYPES[i % 4] for i in range(len(SIZES))]
    tensors, scalars = a_call(name, config, SIZES, dtypes, bits)
    sign = -1.0 if config.get("maximize") else 1.0
    assert_agree(emulated, name, tensors, scalars, grad_scale=sign)


OPTIONS = {
    "skip_zeros": {"skip_zeros": True},
    "max_unorm": {"max_unorm": 1e-3},
    "scales": {"grad_scales": torch.linspace(0.1, 2, len(SIZES))},
    "stochastic": {"stochastic_weights": True, "stochastic_states": [0], "seed": 7, "keys": list(range(len(SIZES)))},
    "everything": {"skip_zeros": True, "max_unorm": 0.1, "stochastic_weights": True, "seed": -1, "keys": [5 << 32] * 8},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_option(emulated, name, option):
    dtypes = [DTYPES[(i + 1) % 4] for i in range(len(SIZES))]
    for block_wise in (True, False):
        config = {"momentum": 0.9} if "momentum" in CASES[name].optimizer.options else {}
        tensors, scalars = a_call(name, config, SIZES, dtypes, block_wise=block_wise)
        if "skip_zeros" in OPTIONS[option]:
            tensors[1][0][100:300] = 0
            tensors[1][4].zero_()  # a block without any gradient is not touched at all
        assert_agree(emulated, name, tensors, scalars, **OPTIONS[option])


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_all_states_rounded_stochastically(emulated, name):
    tensors, scalars = a_call(name, {}, (4096, 300), DTYPES[:2])
    indices = list(range(len(CASES[name].optimizer.states)))
    assert_agree(emulated, name, tensors, scalars, stochastic_states=indices, seed=3, keys=[1 << 32, 2 << 32 | 1])


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(CASES)),
    sizes=st.lists(st.integers(0, 900), min_size=1, max_size=40),
    seed=st.integers(0, 2**16),
    offset=st.integers(0, 3),
)
def test_any_sizes_in_as_many_launches_as_they_need_and_misaligned(emulated, name, sizes, seed, offset):
    sizes = [*sizes, 5]
    dtypes = [DTYPES[(i + seed) % 4] for i in range(len(sizes))]
    tensors, scalars = a_call(name, {}, sizes, dtypes, seed=seed, offset=offset)
    tensors[0] = [torch.nn.functional.pad(p, (offset, 0))[offset:] for p in tensors[0]]
    assert_agree(emulated, name, tensors, scalars)


def sums_of(library, name, tensors, scalars, **options):
    sums = torch.zeros(len(tensors[0]), 3, dtype=torch.float64)
    getattr(library, name)(*tensors, sums, **scalars, **options)
    return sums


@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_tensor_cut_into_rows(emulated, name):
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
    assert_agree(emulated, name, tensors, scalars, norms=norms, **options)


def test_the_calls_above_took_many_launches(emulated):
    assert emulated.capacity() < len(SIZES)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_the_same_blocks(emulated, value):
    tensors, scalars = a_call("adamw", {}, (1024,), [torch.float32])
    tensors[1][0][300] = value
    params, grads, states, absmax = tensors
    ours, theirs = [clone(params), clone(states), clone(absmax)], [clone(params), clone(states), clone(absmax)]
    ops.update("adamw", ours[0], grads, ours[1], ours[2], scalars)
    emulated.adamw(theirs[0], grads, theirs[1], theirs[2], **scalars)
    assert same_bits(ours[0][0], theirs[0][0])
    for k in range(2):
        assert same_bits(ours[2][k], theirs[2][k]) and not ours[2][k][1].isfinite()
        assert torch.equal(ours[1][k][:256], theirs[1][k][:256])  # a block that is not finite has any codes


@pytest.mark.parametrize("signed", [True, False])
def test_the_codec_in_registers_is_the_codec(emulated, signed):
    assert emulated.wrong_near_edges(signed) == 0
    assert emulated.wrong_numbers(signed, 1013) == 0


@pytest.mark.slow
@pytest.mark.parametrize("signed", [True, False])
def test_the_codec_in_registers_is_the_codec_for_every_float(emulated, signed):
    assert emulated.wrong_numbers(signed, 1) == 0


@pytest.mark.parametrize("name", CASES)
def test_scalars_and_keys_that_the_device_reads(emulated, name):
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
        lambda *t: getattr(emulated, name).on_device(
            *t, scalars=torch.tensor(list(scalars.values())), moving_keys=torch.tensor(keys), **options
        ),
    ):
        given = clone(params), grads, clone(states), clone(absmax)
        run(*given)
        results.append([*given[0], *given[2], *given[3]])
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))


def test_nothing_changes_where_an_infinity_was_found(emulated):
    tensors, scalars = a_call("adamw", {}, (700,), [torch.float32])
    before = [clone(part) for part in tensors]
    for library in (torch.ops.torch_bnb, emulated):
        library.adamw.on_device(*tensors, scalars=torch.tensor(list(scalars.values())), found_inf=torch.ones(1))
        assert all(
            torch.equal(a, b) for now, was in zip(tensors, before, strict=True) for a, b in zip(now, was, strict=True)
        )
    torch.ops.torch_bnb.adamw.on_device(
        *tensors, scalars=torch.tensor(list(scalars.values())), found_inf=torch.zeros(1)
    )
    assert not torch.equal(tensors[0][0], before[0][0])
