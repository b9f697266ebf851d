"""How a state is kept: blocks by rows, and the float32 form from which encoding gives the same codes again."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_bnb as bnb
from torch_bnb.optim import state as storage
from torch_bnb.optim.state import Form

SHAPES = [(1,), (300,), (3, 77), (2, 256), (2, 300), (4, 3, 3, 3), (0, 300), (5, 600)]


@st.composite
def states(draw):
    """A state as a step may leave it: blocks of any scale, some of zeros, some whose largest element is negative."""
    shape = draw(st.sampled_from(SHAPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-30, 30))
    values = values * (torch.rand(shape, generator=generator) < draw(st.sampled_from([0.02, 0.5, 1.0])))
    return -values.abs() if draw(st.booleans()) else values


@given(states(), st.booleans(), st.sampled_from([Form.FLAT, Form.ROWS, Form.WHOLE]))
def test_encoding_what_was_decoded_exactly_gives_the_same_codes_and_absmax(values, signed, form):
    values = values if signed else values.abs()
    codes, absmax = storage.encode(values, signed, form)
    assert tuple(absmax.shape) == storage.absmax_shape(values.shape, form)
    again = storage.encode(storage.decode_exactly(codes, absmax, signed), signed, form)
    assert torch.equal(codes, again[0]) and torch.equal(absmax, again[1])


def test_plain_decoding_is_not_that_form():
    """A block whose largest element is negative shrinks by 0.7 % each time: the reason for `decode_exactly`."""
    values = torch.linspace(-1, 0.5, 256)
    codes, absmax = storage.encode(values, True)
    _, smaller = storage.encode(storage.decode(codes, absmax, True), True)
    assert smaller < 0.9931 * absmax


@given(states(), st.booleans())
def test_rows_are_encoded_one_by_one(values, signed):
    codes, absmax = storage.encode(values, signed, Form.ROWS)
    for row in range(len(values)):
        own, largest = storage.encode(values[row].reshape(-1), signed)
        assert torch.equal(codes[row].reshape(-1), own) and torch.equal(absmax[row], largest)
    decoded = storage.decode(codes, absmax, signed)
    for row in range(len(values)):
        expected = bnb.codec.dequantize_blockwise(codes[row].reshape(-1), absmax[row], signed)
        assert torch.equal(decoded[row].reshape(-1), expected)


def trained(steps=3, seed=0, **options):
    torch.manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((70, 90), (20, 512), (4096,))]
    optimizer = bnb.optim.AdamW(params, lr=1e-2, **{"optim_bits": 8, "min_8bit_size": 1024, **options})
    step(params, optimizer, range(steps))
    return params, optimizer


def step(params, optimizer, steps):
    for seed in steps:
        generator = torch.Generator().manual_seed(seed)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("grid", ["flat", "rows"])
@pytest.mark.parametrize("block_wise", [True, False])
def test_a_portable_checkpoint_resumes_bit_for_bit(grid, block_wise):
    params, optimizer = trained(block_grid=grid, block_wise=block_wise)
    optimizer.checkpoint_format = "portable"
    saved = copy.deepcopy(optimizer.state_dict())
    assert {value.dtype for entry in saved["state"].values() for value in entry.values() if torch.is_tensor(value)} == {
        torch.float32
    }
    others, fresh = trained(0, block_grid=grid, block_wise=block_wise)
    fresh.load_state_dict(saved)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    step(params, optimizer, range(3, 6))
    step(others, fresh, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_the_grid_of_rows_where_rows_are_whole_blocks_is_the_flat_one():
    (flat, one), (rows, other) = trained(block_grid="flat"), trained(block_grid="rows")
    assert torch.equal(flat[1], rows[1])
    assert torch.equal(one.state[flat[1]]["exp_avg_absmax"], other.state[rows[1]]["exp_avg_absmax"].view(-1))
    assert not torch.equal(flat[0], rows[0])
    assert "exp_avg" in other.state[rows[2]]  # rows of one element: an absmax each would cost more than it saves


@pytest.mark.parametrize(("here", "there"), [("flat", "rows"), ("rows", "flat")])
def test_loading_the_other_grid_converts(here, there):
    _, optimizer = trained(block_grid=here)
    params, other = trained(0, block_grid=there)
    other.load_state_dict(optimizer.state_dict())
    step(params, other, [3])
    expected = Form.ROWS if there == "rows" else Form.FLAT
    assert storage.form_of(other.state[params[0]], "exp_avg") is expected
    assert storage.form_of(other.state[params[1]], "exp_avg") is expected


def test_an_override_changes_the_grid_of_live_state():
    params, optimizer = trained()
    bnb.optim.GlobalOptimManager.get_instance().override_config(params[0], "block_grid", "rows")
    step(params, optimizer, [3])
    assert storage.form_of(optimizer.state[params[0]], "exp_avg") is Form.ROWS


def test_rows_travel_to_other_libraries_and_are_described():
    params, optimizer = trained(block_grid="rows")
    theirs = torch.optim.AdamW(params)
    theirs.load_state_dict(bnb.checkpoint.convert(optimizer.state_dict(), to="torch", rule="adamw"))
    for p in params:
        state = optimizer.state[p]
        if "exp_avg_codes" in state:
            decoded = storage.decode(state["exp_avg_codes"], state["exp_avg_absmax"], True)
            assert torch.equal(theirs.state[p]["exp_avg"], decoded)
    assert "exp_avg" in str(bnb.checkpoint.describe(optimizer.state_dict()))


def test_a_copy_keeps_the_checkpoint_format():
    _, optimizer = trained(1)
    optimizer.checkpoint_format = "portable"
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.checkpoint_format == "portable"


def test_an_unknown_checkpoint_format_is_an_error():
    _, optimizer = trained(0)
    with pytest.raises(ValueError, match="checkpoint_format='zip': expected one of native, portable"):
        optimizer.checkpoint_format = "zip"


def test_sparse_gradients_on_the_grid_of_rows():
    options = {"lr": 0.1, "momentum": 0.9, "optim_bits": 8, "min_8bit_size": 0, "block_grid": "rows"}
    dense, sparse = (torch.nn.Parameter(torch.ones(20, 300)) for _ in range(2))
    optimizers = [bnb.optim.SGD([p], **options, skip_zeros=p is dense) for p in (dense, sparse)]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(20, generator=generator)[:5]
        values = torch.randn(5, 300, generator=generator)
        sparse.grad = torch.sparse_coo_tensor(rows[None], values, (20, 300))
        dense.grad = sparse.grad.to_dense()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(dense, sparse)
    one, other = (optimizer.state[p] for optimizer, p in zip(optimizers, (dense, sparse), strict=True))
    assert torch.equal(one["momentum_buffer_codes"], other["momentum_buffer_codes"])
