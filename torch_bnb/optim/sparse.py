"""Sparse gradients (``nn.Embedding(sparse=True)``): the touched blocks of a parameter as small dense tensors.

The operator steps those and they are put back; the cost is that of the touched rows. Elements of a touched block that
are in no touched row keep their value and state, by `skip_zeros`. An 8-bit state of such an element is coded anew with
its block's absmax.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from torch_bnb.codec import BLOCK_SIZE, blocks
from torch_bnb.optim.calls import Call, layout_of
from torch_bnb.optim.state import State, absmax_key, codes_key

_ALMOST_ZERO = 2.0**-149
"""A touched element's zero gradient, which is not "no gradient": so small that it is rounded away beside a state, and
that its share in a state of 0 is 0 (of Lion's sign too, as long as beta1 is at least a half)."""


class Touched:
    """The blocks of a parameter that a sparse gradient touches.

    Args:
        parameter: Contiguous.
        grad: COO, sparse in its first dimension only: rows.
        state: The parameter's, prepared.
        names: The states that its configuration needs.
        by_row: Whether its blocks are those of rows, see `state.Form`.
    """

    def __init__(
        self, parameter: Tensor, grad: Tensor, state: State, names: Mapping[str, bool], by_row: bool = False
    ) -> None:
        grad = grad.coalesce()
        self._whole, self._flat = state, parameter.view(-1)
        width, device = max(1, parameter[:1].numel()), parameter.device
        columns = torch.arange(width, device=device)
        elements = (grad.indices()[0, :, None] * width + columns).flatten()
        if by_row:
            in_row = blocks(width)
            self._blocks = (grad.indices()[0, :, None] * in_row + torch.arange(in_row, device=device)).flatten()
            self._covered, touched = elements, torch.arange(len(elements), device=device)
        else:
            self._blocks, order = torch.unique(elements // BLOCK_SIZE, return_inverse=True)
            covered = self._blocks[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=device)
            self._covered = covered[covered < parameter.numel()]
            touched = order * BLOCK_SIZE + elements % BLOCK_SIZE

        self.parameter = self._flat[self._covered]
        self.grad = torch.zeros(len(self._covered), dtype=torch.float32, device=device)
        values = grad.values().flatten().to(torch.float32)
        self.grad[touched] = values.masked_fill(values == 0, _ALMOST_ZERO)
        self.state: State = {}
        for name in names:
            for key, where in (
                (name, self._covered),
                (codes_key(name), self._covered),
                (absmax_key(name), self._blocks),
            ):
                if key in state:
                    self.state[key] = state[key].view(-1)[where]

    def put_back(self) -> None:
        """Writes parameter and state to where they came from."""
        self._flat[self._covered] = self.parameter
        for key, value in self.state.items():
            if key != "step":
                where = self._blocks if key.endswith("_absmax") else self._covered
                self._whole[key].view(-1)[where] = value


@dataclass
class SparseCall(Call):
    """A call of parameters with sparse gradients, of which the operator gets the touched blocks."""

    put_back: list[Callable[[], None]] = field(default_factory=list)
    """Writes each piece to where it came from."""

    @override
    def put(self, parameter: Tensor, grad: Tensor, state: State) -> None:
        piece = Touched(parameter, grad, state, self.active, by_row=bool(self.grids))
        self.put_back.append(piece.put_back)
        self.params.append(piece.parameter)
        self.grads.append(piece.grad)
        self.states.append(piece.state)
        self.layout = [*(self.layout or ()), _seen(parameter, grad, state)]

    @override
    def take(self, params: list[Tensor], grads: list[Tensor], names: Mapping[str, bool]) -> bool:
        """Which rows are touched differs from step to step, so what they are of is compared."""
        before, self.layout = self.layout, None
        if list(map(_seen, params, grads, self.stepped)) != before:
            return False
        for parameter, grad, state in zip(params, grads, self.stepped, strict=True):
            self.put(parameter, grad, state)
        return True

    @override
    def update(self, rule: str, names: Mapping[str, bool]) -> None:
        if self.grad_scales is not None:  # the operator would scale what is almost zero to zero
            for grad, scale in zip(self.grads, self.grad_scales, strict=True):
                torch.where(grad == _ALMOST_ZERO, grad, grad * scale, out=grad)
            self.grad_scales = None
        super().update(rule, names)
        for put_back in self.put_back:
            put_back()

    @override
    def keywords(self) -> dict[str, Any]:
        return {**super().keywords(), "skip_zeros": True}

    @override
    def look(self, names: Mapping[str, bool]) -> bool:
        return True

    @override
    def release(self) -> None:
        super().release()
        self.states, self.put_back = [], []


def _seen(parameter: Tensor, grad: Tensor, state: State) -> tuple[Any, ...]:
    tensors = {key: layout_of(value) for key, value in state.items() if isinstance(value, Tensor)}
    sparse = grad.layout is torch.sparse_coo
    return layout_of(parameter), layout_of(grad), sparse and grad.sparse_dim(), tensors
