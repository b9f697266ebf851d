"""The 8-bit code: every property that its users and its checkpoints rely on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dynamic_map, nearest_distance

from torch_bnb import ops
from torch_bnb.codec import create_dynamic_map, dequantize_blockwise, quantize_blockwise

SIGNS = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
MAPS = {signed: create_dynamic_map(signed) for signed in (True, False)}

units = st.floats(-1, 1, width=32)
scales = st.integers(-120, 100).map(lambda exponent: 2.0**exponent)


def code_of(x: torch.Tensor, signed: bool) -> torch.Tensor:
    """Codes of numbers in [-1, 1] as they are: a 1 in front of each makes the absmax 1."""
    pairs = torch.stack([torch.ones_like(x), x], dim=1)
    return quantize_blockwise(pairs, signed, blocksize=2)[0][:, 1]


@SIGNS
def test_map_is_256_sorted_distinct_numbers_with_an_exact_zero(signed):
    values = MAPS[signed]
    assert values.dtype == torch.float32 and values.shape == (256,)
    assert (values.diff() > 0).all()
    assert values[127 if signed else 0] == 0
    assert values[255] == 1


@SIGNS
def test_map_is_the_papers(signed):
    torch.testing.assert_close(MAPS[signed].double(), dynamic_map(signed), rtol=2e-7, atol=0)


def test_signed_map_is_symmetric_but_for_one():
    values = MAPS[True]
    assert torch.equal(values[:127], -values[128:255].flip(0))
    assert values[0] > -0.994


@SIGNS
def test_encode_is_exact_on_every_code(signed):
    assert torch.equal(code_of(MAPS[signed], signed), torch.arange(256, dtype=torch.uint8))


@SIGNS
@settings(max_examples=300)
@given(x=st.lists(units, min_size=1, max_size=64))
def test_encode_gives_the_nearest_of_all_codes(signed, x):
    x = torch.tensor(x) if signed else torch.tensor(x).abs()
    found = MAPS[signed][code_of(x, signed).long()].double()
    assert torch.equal((x.double() - found).abs(), nearest_distance(x, MAPS[signed]))


@SIGNS
def test_encode_gives_the_nearest_code_around_every_midpoint(signed):
    values = MAPS[signed].double()
    middles = ((values[1:] + values[:-1]) / 2).float()
    near = [middles]
    for direction in (2.0, -2.0):
        for _ in range(3):
            near.append(torch.nextafter(near[-1] if len(near) % 4 else middles, torch.tensor(direction)))
    x = torch.cat(near)
    found = values[code_of(x, signed).long()]
    assert torch.equal((x.double() - found).abs(), nearest_distance(x, MAPS[signed]))


@SIGNS
def test_encode_is_monotone(signed):
    x = torch.cat([torch.logspace(-9, 0, 20_000), torch.linspace(0, 1, 20_000)]).sort().values
    x = torch.cat([-x.flip(0), x]) if signed else x
    assert (code_of(x, signed).int().diff() >= 0).all()


@SIGNS
@settings(max_examples=200)
@given(x=st.lists(units, min_size=1, max_size=700), scale=scales, blocksize=st.sampled_from([1, 7, 64, 256]))
def test_round_trip(signed, x, scale, blocksize):
    x = torch.tensor(x, dtype=torch.float32) * scale
    x = x if signed else x.abs()
    codes, absmax = quantize_blockwise(x, signed, blocksize)
    back = dequantize_blockwise(codes, absmax, signed, blocksize)
    for begin in range(0, len(x), blocksize):
        block, decoded = x[begin : begin + blocksize], back[begin : begin + blocksize]
        most = block.abs().max()
        assert absmax[begin // blocksize] == most
        assert torch.equal(decoded[block == most], block[block == most]), "the absmax element is exact"
        assert (decoded[block == 0] == 0).all(), "zero stays zero"
        assert (decoded * block >= 0).all(), "signs are kept"
        assert ((decoded - block).abs() <= 0.0075 * most).all(), "half the widest gap"


def test_a_negative_absmax_element_becomes_the_most_negative_code():
    codes, absmax = quantize_blockwise(torch.tensor([-2.0, 1.0]))
    assert absmax.item() == 2.0
    assert codes[0] == 0
    assert dequantize_blockwise(codes, absmax)[0] == 2 * MAPS[True][0]


@SIGNS
@pytest.mark.parametrize("tail", [1, 255, 257, 300])
def test_a_tail_block_is_coded_like_the_padded_block(signed, tail):
    x = torch.rand(tail)
    padded = torch.cat([x, torch.zeros(-tail % 256)])
    codes, absmax = quantize_blockwise(x, signed)
    padded_codes, padded_absmax = quantize_blockwise(padded, signed)
    assert torch.equal(codes, padded_codes[:tail])
    assert torch.equal(absmax, padded_absmax)


@SIGNS
def test_an_all_zero_block_has_absmax_zero_and_decodes_to_zero(signed):
    codes, absmax = quantize_blockwise(torch.zeros(300), signed)
    assert torch.equal(absmax, torch.zeros(2))
    assert torch.equal(dequantize_blockwise(codes, absmax, signed), torch.zeros(300))


@SIGNS
@pytest.mark.parametrize("scale", [1e-38, 1e-40, 1.4e-45])
def test_a_subnormal_block_is_coded_like_any_other(signed, scale):
    x = torch.tensor([1.0, 0.5, 0.0]) * scale
    codes, absmax = quantize_blockwise(x, signed)
    assert absmax.item() == x[0].item()
    expected = code_of(torch.nan_to_num(x.double() / x[0].double()).float(), signed)
    assert torch.equal(codes, expected)


@SIGNS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_element_is_never_lost(signed, bad):
    x = torch.ones(512)
    x[3] = bad
    back = dequantize_blockwise(*quantize_blockwise(x, signed), signed)
    assert not back[3].isfinite()
    assert torch.equal(back[256:], torch.ones(256)), "other blocks are untouched"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_shapes_and_dtypes(dtype):
    x = torch.randn(5, 3, 70).to(dtype)
    codes, absmax = quantize_blockwise(x)
    assert codes.shape == x.shape and codes.dtype == torch.uint8
    assert absmax.shape == (5,) and absmax.dtype == torch.float32
    back = dequantize_blockwise(codes, absmax, dtype=dtype)
    assert back.shape == x.shape and back.dtype == dtype
    assert (back - x).abs().max() < 0.1


def test_blocks_run_in_contiguous_order():
    x = torch.randn(300, 200)
    codes, absmax = quantize_blockwise(x.t())
    expected, expected_absmax = quantize_blockwise(x.t().contiguous())
    assert torch.equal(codes, expected) and torch.equal(absmax, expected_absmax)


def test_a_block_longer_than_the_tensor_is_the_tensor():
    x = torch.randn(700)
    codes, absmax = quantize_blockwise(x, blocksize=700)
    longest, its_absmax = torch.empty(700, dtype=torch.uint8), torch.empty(1)
    ops.quantize_blockwise(x, longest, its_absmax, True, 2**63 - 1)  # the operator alone
    assert torch.equal(longest, codes) and torch.equal(its_absmax, absmax)
    back = torch.empty(700)
    ops.dequantize_blockwise(back, codes, absmax, True, 2**63 - 1)
    assert torch.equal(back, dequantize_blockwise(codes, absmax, blocksize=2**70))


def test_empty_tensor():
    codes, absmax = quantize_blockwise(torch.empty(0, 4))
    assert codes.shape == (0, 4) and absmax.shape == (0,)
    assert dequantize_blockwise(codes, absmax).shape == (0, 4)


def test_errors_name_the_argument_and_its_value():
    with pytest.raises(ValueError, match=r"x must be a floating-point tensor, got torch\.int64"):
        quantize_blockwise(torch.arange(3))
    with pytest.raises(ValueError, match="blocksize must be at least 1, got 0"):
        quantize_blockwise(torch.ones(3), blocksize=0)
    with pytest.raises(ValueError, match=r"codes must be torch\.uint8, got torch\.float32"):
        dequantize_blockwise(torch.ones(3), torch.ones(1))
    with pytest.raises(ValueError, match="300 codes in blocks of 256 need 2 absmax, got 1"):
        dequantize_blockwise(torch.zeros(300, dtype=torch.uint8), torch.ones(1))


def test_a_tensor_of_another_kind_is_not_made_of_codes():
    codes, absmax = quantize_blockwise(torch.ones(8))
    with pytest.raises(ValueError, match=r"dequantize_blockwise: dtype must be a floating-point one, got torch\.int32"):
        dequantize_blockwise(codes, absmax, dtype=torch.int32)
