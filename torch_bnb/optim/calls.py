"""One call of the operator: parameters that share device, scalars and options, gathered and then run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_bnb import ops
from torch_bnb.optim import sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.state import State

COPIES_BYTES = 32 * 2**20
"""A call takes no more strided parameters once its copies are this large."""


class Grid(NamedTuple):
    """Where the blocks of a parameter lie, as the operator's ``rows``, ``row_strides`` and ``origins`` say it."""

    row: int = 0
    stride: int = 0
    origin: int = 0


@dataclass
class Call:
    """What the operator gets."""

    scalars: dict[str, float]
    arguments: dict[str, Any]
    """Keyword arguments that hold for all parameters."""
    active: Mapping[str, bool]
    """The states that the configuration needs."""
    percentile: int = 100
    """Of its last norms, which a gradient is scaled down to; 100: none is scaled."""
    groups: tuple[Any, ...] = ()
    """The process groups that hold the other parts of the parameters; none, if they are whole."""
    strided: bool = False
    """Whether parameters or gradients are not contiguous: copies stand for them while the operator runs."""
    params: list[Tensor] = field(default_factory=list)
    """Of a sharded parameter the part that is here. So are the gradients."""
    grads: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    stepped: list[State] = field(default_factory=list)
    """The parameters' whole states, of which `states` may hold pieces."""
    steps: list[int] = field(default_factory=list)
    """The step that each reaches."""
    grids: list[Grid] = field(default_factory=list)
    """Empty, if every parameter is one row from index 0."""
    keys: list[int] = field(default_factory=list)
    """For stochastic rounding; empty without."""
    grad_scales: Tensor | None = None
    norms: Tensor | None = None
    headers: ops.Headers | None = None
    """Of the operator's tensors, once they have been looked at and if they can be known by their headers."""
    copied: int = 0
    """Bytes of its copies."""
    layout: Any = None
    """What the tensors were when they were looked at: dtype, device, shape."""

    def add(self, parameter: Tensor, grad: Tensor, state: State, step: int, grid: Grid | None) -> None:
        """Adds a parameter whose state is prepared; of a sharded one what is here."""
        self.stepped.append(state)
        self.steps.append(step)
        if grid is not None:
            self.grids.append(grid)
        self.put(parameter, grad, state)

    def put(self, parameter: Tensor, grad: Tensor, state: State) -> None:
        """Puts in what the operator gets of a parameter."""
        self.params.append(parameter)
        self.grads.append(grad)
        self.states.append(state)
        if self.strided:
            self.copied += parameter.nbytes + grad.nbytes

    def is_full(self) -> bool:
        """Whether copies of more parameters would take too much memory."""
        return self.copied >= COPIES_BYTES

    def take(self, params: list[Tensor], grads: list[Tensor], names: Mapping[str, bool]) -> bool:
        """Takes the parameters and gradients of another step, in the order in which they were added.

        Args:
            params: Of sharded ones what is here.
            grads: Their gradients.
            names: The rule's states.

        Returns:
            Whether the operator's tensors are like those of the last step, wherever they lie.
        """
        self.params, self.grads = params, grads
        return self.look(names)

    def look(self, names: Mapping[str, bool]) -> bool:
        """Looks at the operator's tensors.

        Args:
            names: The rule's states.

        Returns:
            Whether they are like those of the last look, wherever they lie.
        """
        try:
            tensors = list(chain.from_iterable(self.tensors(names)))
        except KeyError:  # somebody has taken a state away
            return False
        before, self.headers = self.layout, None
        if not any(map(Tensor.is_neg, chain(self.params, self.grads))):  # no header says it
            self.headers = ops.headers_of(tensors)
        if self.headers is not None:
            self.layout = self.headers.table[:, 1:]
            return isinstance(before, Tensor) and torch.equal(before, self.layout)
        self.layout = list(map(layout_of, tensors))
        return self.layout == before

    def layout_by_parameter(self) -> Tensor | None:
        """What headers say but for addresses, int64 of shape (parameters, tensors of each, 2); None without headers."""
        if self.headers is None:
            return None
        return self.layout.view(-1, len(self.params), self.layout.shape[1]).transpose(0, 1)

    def release(self) -> None:
        """Lets go of parameters and gradients."""
        self.params, self.grads, self.headers = [], [], None

    def finds_state(self) -> bool:
        """Whether histories are still there; the operator's own tensors are what `look` looks at."""
        return self.percentile == 100 or all(storage.HISTORY in state for state in self.stepped)

    def tensors(self, names: Mapping[str, bool]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """The operator's parameters, gradients, states and absmax."""
        values: list[Tensor] = []
        absmax: list[Tensor] = []
        for name in names:
            kept = storage.gather(self.states, name) if name in self.active else storage.absent(len(self.states))
            values += kept[0]
            absmax += kept[1]
        if self.groups or self.grids:
            values, absmax = list(map(sharding.local, values)), list(map(sharding.local, absmax))
        return self.params, self.grads, values, absmax

    def keywords(self) -> dict[str, Any]:
        """The operator's keyword arguments besides the scalars."""
        own: dict[str, Any] = {}
        if self.grad_scales is not None:
            own["grad_scales"] = self.grad_scales
        if self.norms is not None:
            own["norms"] = self.norms
        if self.grids:
            own["rows"], own["row_strides"], own["origins"] = zip(*self.grids, strict=True)
        return {**self.arguments, **own, "keys": self.keys}

    def run(self, rule: str, names: Mapping[str, bool], indices: Sequence[int]) -> None:
        """Steps every parameter.

        Args:
            rule: Name of the operator.
            names: Its states.
            indices: Of the parameters among all of the optimizer's.
        """
        if self.arguments["stochastic_states"] or self.arguments["stochastic_weights"]:
            self.keys = [step << 32 | index for step, index in zip(self.steps, indices, strict=True)]
        with self.laid_out(writes=True):
            self.update(rule, names)
        torch.autograd.graph.increment_version(self.params)
        for state, step in zip(self.stepped, self.steps, strict=True):
            state["step"] = step

    @contextmanager
    def laid_out(self, writes: bool) -> Iterator[None]:
        """In its body the parameters and gradients are contiguous.

        Args:
            writes: The body changes parameters.
        """
        if not self.strided:
            yield
            return
        params, grads = self.params, self.grads
        self.params, self.grads = ([tensor.contiguous() for tensor in tensors] for tensors in (params, grads))
        self.headers = None  # they are of others
        try:
            yield
            if writes:
                copied = [(p, copy) for p, copy in zip(params, self.params, strict=True) if copy is not p]
                if copied:
                    torch._foreach_copy_([p for p, _ in copied], [copy for _, copy in copied])
        finally:
            self.params, self.grads = params, grads

    def update(self, rule: str, names: Mapping[str, bool]) -> None:
        """The operator alone, with the arguments that have been gathered."""
        if self.headers is not None:
            ops.update_by_address(rule, self.headers, self.scalars, **self.keywords())
        else:
            ops.update(rule, *self.tensors(names), self.scalars, **self.keywords())


def layout_of(tensor: Tensor) -> tuple[Any, ...]:
    """Everything about a tensor but where it lies."""
    strided = tensor.layout is torch.strided
    return tensor.layout, tensor.dtype, tensor.device, tensor.shape, strided and tensor.is_contiguous()


def is_strided(parameter: Tensor, grad: Tensor) -> bool:
    """Whether one of them is dense and no run of memory."""
    return grad.layout is torch.strided and not (parameter.is_contiguous() and grad.is_contiguous())
