"""The compiled operators at their boundary."""

import math
import os
import subprocess
import sys

import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from torch_bnb import ops

EVERY_RULE = pytest.mark.parametrize("name", CASES)


def arguments(name, bits=8, n=700, dtype=torch.float32):
    """What the optimizer would pass for two parameters."""
    case = CASES[name]
    params = [torch.randn(n).to(dtype), torch.randn(3).to(dtype)]
    grads = [torch.randn(n), torch.randn(3)]
    shapes = [p.shape for _ in case.optimizer.states for p in params]
    if bits == 8:
        states = [torch.full(shape, 127, dtype=torch.uint8) for shape in shapes]
        absmax = [torch.zeros(-(-shape.numel() // 256)) for shape in shapes]
    else:
        states, absmax = [torch.zeros(shape) for shape in shapes], []
    optimizer = case.optimizer([torch.zeros(1, requires_grad=True)], **case.configs[0])
    return params, grads, states, absmax, optimizer.scalars(optimizer.param_groups[0], 1, True)


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_opcheck(name, bits):
    params, grads, states, absmax, scalars = arguments(name, bits)
    op = getattr(torch.ops.torch_bnb, name).default
    torch.library.opcheck(op, (params, grads, states, absmax), {**scalars, "grad_scale": 1.0})


@pytest.mark.parametrize("signed", [True, False])
def test_opcheck_of_the_codec(signed):
    values, codes, absmax = torch.rand(700), torch.zeros(700, dtype=torch.uint8), torch.zeros(3)
    codec = torch.ops.torch_bnb_codec
    torch.library.opcheck(codec.quantize_blockwise.default, (values, codes, absmax, signed, 256))
    torch.library.opcheck(codec.dequantize_blockwise.default, (values, codes, absmax, signed, 256))
    torch.library.opcheck(codec.dynamic_map.default, (torch.empty(256), signed))


DAMAGE = [
    (lambda p, g, s, a: g.pop(), "adamw: expected 2 gradients, got 1"),
    (lambda p, g, s, a: s.pop(), "adamw: expected 4 states, got 3"),
    (lambda p, g, s, a: a.pop(), "adamw: absmax must be empty or have one tensor per state"),
    (lambda p, g, s, a: a.clear(), "adamw: a uint8 state needs its absmax"),
    (lambda p, g, s, a: g.__setitem__(1, torch.ones(4)), "adamw: a gradient must have 3 elements, got 4"),
    (lambda p, g, s, a: g.__setitem__(1, torch.ones(3).int()), "adamw: a gradient must be float32, .*got int32"),
    (lambda p, g, s, a: s.__setitem__(3, torch.ones(3).half()), "adamw: a state must be float32, got float16"),
    (lambda p, g, s, a: s.__setitem__(3, torch.ones(4)), "adamw: a state must have 3 elements, got 4"),
    (lambda p, g, s, a: a.__setitem__(0, torch.ones(2)), "adamw: absmax must have 3 elements, got 2"),
    (lambda p, g, s, a: p.__setitem__(0, torch.ones(1400)[::2]), "adamw: a parameter must be contiguous"),
    (lambda p, g, s, a: p[1].untyped_storage().resize_(0), "adamw: a parameter has no memory, its storage has been"),
    (lambda p, g, s, a: s[2].untyped_storage().resize_(0), "adamw: a state has no memory, its storage has been freed"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[m for _, m in DAMAGE])
def test_wrong_tensors_are_refused_before_anything_is_written(damage, message):
    params, grads, states, absmax, scalars = arguments("adamw")
    damage(params, grads, states, absmax)
    kept = [t for t in (*params, *states, *absmax) if t.untyped_storage().nbytes()]
    before = [t.clone() for t in kept]
    with pytest.raises(RuntimeError, match=f"^{message}"):
        ops.update("adamw", params, grads, states, absmax, scalars)
    headers = ops.headers_of([*params, *grads, *states, *absmax])
    if headers is not None:
        whole = len(headers.table) == 12  # with a tensor too few, what is the next one's cannot be told
        with pytest.raises(
            RuntimeError, match=message if whole else "adamw: headers must be on the CPU and have 3 num"
        ):
            ops.update_by_address("adamw", headers, scalars)
    assert all(torch.equal(t, b) for t, b in zip(kept, before, strict=True))


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_tensors_known_by_their_headers_step_alike(name, bits):
    params, grads, states, absmax, scalars = arguments(name, bits)
    copies = [[t.clone() for t in tensors] for tensors in (params, grads, states, absmax)]
    ops.update(name, *copies, scalars)
    absmax = absmax or [torch.empty(0) for _ in states]
    headers = ops.headers_of([*params, *grads, *states, *absmax])
    ops.update_by_address(name, headers, scalars)
    assert all(torch.equal(t, c) for t, c in zip([*params, *states], copies[0] + copies[2], strict=True))


STORED = torch.arange(4096.0)


@given(data=st.data(), shape=st.lists(st.integers(0, 4), max_size=4))
def test_a_header_says_what_torch_says(data, shape):
    strides = [data.draw(st.integers(0, 16)) for _ in shape]
    strided = torch.as_strided(STORED, shape, strides, data.draw(st.integers(0, 7)))
    transposed = STORED[: math.prod(shape)].view(shape).movedim(0, -1) if shape else STORED[3]
    for tensor in (strided, transposed, transposed.contiguous()):
        table = ops.headers_of([tensor, tensor.contiguous(), tensor.double()]).table
        (address, numel, kind), (*_, contiguous), (*_, in_double) = table.tolist()
        assert (address, numel) == (tensor.data_ptr(), tensor.numel())
        assert (kind == contiguous) == tensor.is_contiguous()
        assert in_double != contiguous


def test_headers_of_other_shapes_are_others():
    shapes = [(60, 80), (80, 60), (4800,), (4800, 1), (1, 4800), (2, 40, 60), (40, 2, 60), ()]
    kinds = ops.headers_of([torch.empty(shape) for shape in shapes]).table[:, 2]
    assert len(set(kinds.tolist())) == len(shapes)
    assert torch.equal(kinds, ops.headers_of([torch.ones(shape) for shape in shapes]).table[:, 2])


class Subclass(torch.Tensor):
    pass


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


UNREADABLE = {
    "none": None,
    "a subclass": torch.ones(3).as_subclass(Subclass),
    "meta": torch.ones(3, device="meta"),
    "sparse": torch.eye(3).to_sparse(),
    "boolean": torch.ones(3, dtype=torch.bool),
    "complex": torch.ones(3, dtype=torch.complex64),
    "zeros without memory": torch._efficientzerotensor(3),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_a_header_cannot_say_is_not_read(what):
    assert ops.headers_of([torch.ones(3), torch.nn.Parameter(torch.ones(2))]) is not None
    assert ops.headers_of([torch.ones(3), UNREADABLE[what]]) is None


def test_a_dispatch_mode_sees_every_tensor():
    with Watching():
        assert ops.headers_of([torch.ones(3)]) is None


def test_a_default_device_changes_nothing():
    with torch.device("meta"):
        assert ops.headers_of([torch.ones(3, device="cpu")]) is not None


def test_headers_that_are_none_are_refused():
    params, grads, states, absmax, scalars = arguments("adamw")
    headers = ops.headers_of([*params, *grads, *states, *absmax])
    for table, message in (
        (headers.table.int(), "headers must be int64, got int32"),
        (headers.table.t(), "headers must be contiguous"),
        (headers.table.flip(0), "the first header must be that of the first parameter"),
    ):
        with pytest.raises(RuntimeError, match=f"adamw: {message}"):
            ops.update_by_address("adamw", headers._replace(table=table), scalars)


def test_of_many_wrong_tensors_the_first_is_named():
    params = [torch.ones(3) for _ in range(500)]
    grads = [torch.ones(3) for _ in params]
    grads[400], grads[450] = torch.ones(4), torch.ones(5)
    states = [torch.zeros(3) for _ in range(2 * len(params))]
    scalars = arguments("adamw")[-1]
    with pytest.raises(RuntimeError, match="adamw: a gradient must have 3 elements, got 4"):
        ops.update("adamw", params, grads, states, [], scalars)
    assert all(torch.equal(p, torch.ones(3)) for p in params)


def test_empty_parameters_among_many_are_passed_over():
    params = [torch.ones(3 * (i % 3 > 0)) for i in range(500)]
    grads = [torch.ones_like(p) for p in params]
    states = [torch.zeros_like(p) for _ in range(2) for p in params]
    ops.update("adamw", params, grads, states, [], arguments("adamw")[-1])
    assert all((p != 1).all() for p in params)


def test_a_missing_scalar_is_named():
    params, grads, states, absmax, scalars = arguments("adamw")
    del scalars["eps"]
    with pytest.raises(RuntimeError, match="eps"):
        ops.update("adamw", params, grads, states, absmax, scalars)


def test_an_absent_state_reads_as_zero():
    params, grads, _, _, scalars = arguments("sgd", bits=32)
    before = params[0].clone()
    ops.update("sgd", params, grads, [torch.empty(0), torch.empty(0)], [], scalars)
    torch.testing.assert_close(params[0], before - scalars["lr"] * grads[0])


# Every rule, both widths, every dtype, values of every size: what one instruction set computes, as one checksum a line.
PROGRAM = """
import hashlib, sys, torch
sys.path.insert(0, "tests")
from cases import CONFIGS, CASES
from torch_bnb.codec import quantize_blockwise
torch.manual_seed(0)
spread = torch.logspace(-12, 3, 70_000) * torch.randn(70_000).sign()
for signed in (True, False):
    codes, absmax = quantize_blockwise(spread if signed else spread.abs(), signed)
    print("codec", signed, hashlib.sha256(codes.numpy().tobytes() + absmax.numpy().tobytes()).hexdigest())
for name, config in CONFIGS:
    for bits in (8, 32):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            p = spread[::7].to(dtype).requires_grad_()
            optimizer = CASES[name].optimizer([p], lr=CASES[name].lr, optim_bits=bits, **config)
            for step in range(3):
                p.grad = spread[step::7][: p.numel()].to(dtype)
                optimizer.step()
            digest = hashlib.sha256(p.detach().double().numpy().tobytes()).hexdigest()
            print(name, config, bits, dtype, digest)
"""


def bits_of(isa):
    environment = {**os.environ, "TORCH_BNB_ISA": isa}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else done.stderr


def test_every_instruction_set_gives_the_same_bits():
    best = bits_of("")
    assert len(best) > 50, best
    for isa in ("baseline", "avx2", "avx512"):
        result = bits_of(isa)
        if isinstance(result, str):  # this machine lacks it, and says so
            assert f"TORCH_BNB_ISA={isa} is not one of" in result and isa != "baseline"
        else:
            assert result == best, isa


def test_an_unknown_instruction_set_is_an_error():
    assert "TORCH_BNB_ISA=mmx is not one of baseline, avx2, avx512" in bits_of("mmx")


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_a_block_does_not_cross_a_row(name, bits):
    n, row = 3 * 300, 300
    params, grads, states, absmax, scalars = arguments(name, bits, n)
    params, grads, states = params[:1], grads[:1], states[::2]
    absmax = [torch.zeros(3 * 2) for _ in states] if absmax else []
    parts = [
        [t.view(3, -1)[k].clone() for t in tensors] for k in range(3) for tensors in (params, grads, states, absmax)
    ]
    common = {"norms": torch.tensor([[2.0, 3.0, 0.5]])}
    ops.update(name, params, grads, states, absmax, scalars, rows=[row], **common)
    for k in range(3):
        p, g, s, a = parts[4 * k : 4 * k + 4]
        ops.update(name, p, g, s, a, scalars, **common)
        for whole, part in zip((*params, *states, *absmax), (*p, *s, *a), strict=True):
            assert torch.equal(whole.view(3, -1)[k], part)


@EVERY_RULE
def test_chance_goes_by_the_index_in_the_whole_tensor(name):
    params, grads, states, absmax, scalars = arguments(name, 8, 4 * 512, torch.bfloat16)
    params, grads, states, absmax = params[:1], grads[:1], states[::2], absmax[::2]
    chance = {"stochastic_weights": True, "stochastic_states": range(len(states)), "seed": 3, "keys": [1 << 32]}
    halves = [  # of every one of the four rows: columns from 256
        [t.view(4, -1)[:, t.numel() // 8 :].clone().view(-1) for t in tensors]
        for tensors in (params, grads, states, absmax)
    ]
    norms = torch.tensor([[2.0, 3.0, 1.0]])
    ops.update(name, params, grads, states, absmax, scalars, norms=norms, **chance)
    p, g, s, a = halves
    ops.update(name, p, g, s, a, scalars, norms=norms, rows=[256], row_strides=[512], origins=[256], **chance)
    for whole, half in zip((*params, *states, *absmax), (*p, *s, *a), strict=True):
        assert torch.equal(whole.view(4, -1)[:, whole.numel() // 8 :].reshape(-1), half)


@EVERY_RULE
@pytest.mark.parametrize("max_unorm", [0.0, 0.01])
def test_parts_that_add_up_their_sums_step_like_the_whole(name, max_unorm):
    params, grads, states, absmax, scalars = arguments(name, 8, 4 * 256)
    params, grads, states, absmax = params[:1], grads[:1], states[::2], absmax[::2]
    parts = [
        [[t.view(4, -1)[k].clone() for t in tensors] for tensors in (params, grads, states, absmax)] for k in range(4)
    ]
    ops.update(name, params, grads, states, absmax, scalars, max_unorm=max_unorm)
    norms = None
    for _ in range(2):  # of the rule, then of the update
        total = torch.zeros(1, 3, dtype=torch.float64)
        for part in parts:
            sums = torch.empty(1, 3, dtype=torch.float64)
            ops.measure(name, *part, scalars, sums, norms=norms, max_unorm=max_unorm)
            total += sums
        norms = ops.norms_of(total, max_unorm)
    for part in parts:
        ops.update(name, *part, scalars, norms=norms)
    for index, tensors in enumerate((params, states, absmax)):
        for position, whole in enumerate(tensors):
            where = (0, 2, 3)[index]
            assert torch.equal(whole, torch.cat([part[where][position] for part in parts]))


def test_rows_that_do_not_fit_are_refused():
    params, grads, states, absmax, scalars = arguments("adamw")
    with pytest.raises(RuntimeError, match="adamw: rows must be 0 or divide a parameter's 700 elements, got 11"):
        ops.update("adamw", params, grads, states, absmax, scalars, rows=[11, 3])
    with pytest.raises(RuntimeError, match="adamw: rows must be empty or have one number per parameter"):
        ops.update("adamw", params, grads, states, absmax, scalars, rows=[7])
