"""Sparse gradients: only touched rows move, as torch.optim.SparseAdam moves them."""

import pytest
import torch
from cases import CASES
from torch import nn

import torch_bnb as bnb

DENSE_RULES = [name for name, case in CASES.items() if not case.optimizer.layerwise]


def embedding(rows=300, width=48):
    torch.manual_seed(0)
    return nn.Embedding(rows, width, sparse=True)


def backward(module, tokens):
    module.zero_grad()
    (module(tokens) * torch.linspace(-1, 1, module.embedding_dim)).sum().backward()


def batches(count, rows=300, size=10):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(rows, (size,), generator=generator) for _ in range(count)]


def test_32_bit_adam_is_torchs_sparse_adam():
    ours, theirs = embedding(), embedding()
    optimizer, oracle = bnb.optim.Adam(ours.parameters(), lr=1e-2), torch.optim.SparseAdam(theirs.parameters(), lr=1e-2)
    for tokens in batches(20):
        backward(ours, tokens)
        backward(theirs, tokens)
        optimizer.step()
        oracle.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DENSE_RULES)
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("width", [48, 256, 300])
def test_only_touched_rows_move(name, bits, width):
    module = embedding(width=width)
    optimizer = CASES[name].optimizer(module.parameters(), lr=CASES[name].lr, optim_bits=bits, **CASES[name].configs[1])
    for tokens in batches(5):
        before = module.weight.detach().clone()
        backward(module, tokens)
        optimizer.step()
        moved = (module.weight != before).any(dim=1).nonzero().flatten()
        assert set(moved.tolist()) == set(tokens.tolist())
    assert optimizer.state[module.weight]["step"] == 5
    if bits == 8:
        assert any(key.endswith("_codes") for key in optimizer.state[module.weight])


@pytest.mark.parametrize("name", DENSE_RULES)
@pytest.mark.parametrize("bits", [8, 32])
def test_a_gradient_of_all_rows_does_what_the_dense_one_does(name, bits):
    sparse, dense = embedding(width=256), embedding(width=256)
    dense.sparse = False
    make, lr, config = CASES[name].optimizer, CASES[name].lr, CASES[name].configs[1]
    optimizers = [make(m.parameters(), lr=lr, optim_bits=bits, **config) for m in (sparse, dense)]
    for _ in range(3):
        for module, optimizer in zip((sparse, dense), optimizers, strict=True):
            backward(module, torch.randperm(300, generator=torch.Generator().manual_seed(2)))
            optimizer.step()
    assert torch.equal(sparse.weight, dense.weight)


def test_a_row_may_come_several_times_and_its_zero_elements_are_gradients_too():
    ours, theirs = embedding(width=5), embedding(width=5)
    optimizer, oracle = bnb.optim.Adam(ours.parameters(), lr=1e-2), torch.optim.SparseAdam(theirs.parameters(), lr=1e-2)
    for tokens in (torch.tensor([7, 7, 7, 299]), torch.tensor([7, 299])):
        backward(ours, tokens)  # the middle of five linspace weights is 0
        backward(theirs, tokens)
        optimizer.step()
        oracle.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DENSE_RULES)
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("percentile", [100, 50])
def test_zeros_in_touched_rows_do_what_they_do_in_a_dense_gradient(name, bits, percentile):
    make, lr = CASES[name].optimizer, CASES[name].lr
    options = {"optim_bits": bits, "percentile_clipping": percentile}
    params = [torch.ones(600, 9, requires_grad=True) for _ in range(2)]
    optimizers = [make([p], lr=lr, **options) for p in params]
    for size in (1.0, 1.0, 50.0):  # the last one is clipped
        grad = torch.full((600, 9), size)
        grad[:, 3] = 0
        params[0].grad = torch.sparse_coo_tensor(torch.arange(600)[None], grad.clone(), check_invariants=True)
        params[1].grad = grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(*params, rtol=1e-6, atol=1e-6)


def test_the_operator_sees_only_what_is_touched(monkeypatch):
    seen = []
    update = bnb.ops.update
    monkeypatch.setattr(
        bnb.ops, "update", lambda rule, params, *a, **k: (seen.append(params), update(rule, params, *a, **k))
    )
    module = embedding(rows=100_000, width=256)
    optimizer = bnb.optim.AdamW(module.parameters(), optim_bits=8)
    backward(module, torch.tensor([5, 99_999]))
    optimizer.step()
    assert [p.numel() for p in seen[0]] == [512]


def test_clipping_and_maximize_work_on_sparse_gradients():
    module, other = embedding(), embedding()
    clipped = bnb.optim.SGD(module.parameters(), lr=0.1, percentile_clipping=50, maximize=True)
    plain = bnb.optim.SGD(other.parameters(), lr=0.1, maximize=True)
    for tokens in (torch.arange(4), torch.arange(100)):
        backward(module, tokens)
        backward(other, tokens)
        before = other.weight.detach().clone()
        clipped.step()
        plain.step()
    ways = [(w.detach() - before).norm() for w in (module.weight, other.weight)]
    assert 0 < ways[0] < 0.9 * ways[1]


@pytest.mark.parametrize(
    ("optimizer", "options", "needs"),
    [
        (bnb.optim.LAMB, {}, "LAMB"),
        (bnb.optim.AdamW, {"max_unorm": 0.1}, "max_unorm"),
        (bnb.optim.AdamW, {"block_wise": False}, "block_wise=False"),
    ],
)
def test_what_needs_the_whole_tensor_is_refused(optimizer, options, needs):
    module = embedding()
    backward(module, torch.arange(4))
    with pytest.raises(NotImplementedError, match=f"{needs} needs the whole tensor, its gradient is sparse"):
        optimizer(module.parameters(), **options).step()
