"""One call of the operator: parameters that share device, scalars and options, gathered and then run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_bnb import ops
from torch_bnb.optim import sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.state import State


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
    params: list[Tensor] = field(default_factory=list)
    """Contiguous; of a sharded parameter the part that is here. So are the gradients."""
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
    layout: Any = None
    """What the tensors were when they were looked at: dtype, device, size."""
    put_back: list[Callable[[], Any]] = field(default_factory=list)
    """For parameters in whose place a copy stands in `params`."""
    copies: bool = False
    """Whether there is a copy of a parameter or a gradient, which is one of this step only."""

    def add(self, parameter: Tensor, grad: Tensor, state: State, step: int, grid: Grid | None) -> None:
        """Adds a parameter whose state is prepared; of a sharded one what is here."""
        self.stepped.append(state)
        self.steps.append(step)
        if grid is not None:
            self.grids.append(grid)
        self.put(parameter, grad, state)

    def put(self, parameter: Tensor, grad: Tensor, state: State) -> None:
        """Puts in what the operator gets of a parameter."""
        contiguous, its = _contiguous(parameter), _contiguous(grad)
        if contiguous is not parameter:
            self.put_back.append(partial(parameter.copy_, contiguous))
        self.copies |= contiguous is not parameter or its is not grad
        self.params.append(contiguous)
        self.grads.append(its)
        self.states.append(state)

    def take(self, params: list[Tensor], grads: list[Tensor], names: Mapping[str, bool]) -> bool:
        """Takes the parameters and gradients of another step, in the order in which they were added.

        Args:
            params: Of sharded ones what is here.
            grads: Theirs.
            names: The rule's states.

        Returns:
            Whether the operator's tensors are like those of the last step, wherever they lie.
        """
        if self.copies:
            self.put_all(params, grads)
        else:
            self.params, self.grads = params, grads
        return self.look(names)

    def put_all(self, params: list[Tensor], grads: list[Tensor]) -> None:
        """Puts in parameters and gradients anew."""
        self.params, self.grads, self.states = [], [], []
        for parameter, grad, state in zip(params, grads, self.stepped, strict=True):
            self.put(parameter, grad, state)

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

    def release(self) -> None:
        """Lets go of parameters and gradients."""
        self.params, self.grads, self.headers, self.put_back = [], [], None, []

    def finds_state(self) -> bool:
        """Whether the states that are prepared are still where they were, as far as it cannot be seen at the call."""
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
        """The operator's keyword arguments beside the scalars."""
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
        self.update(rule, names)
        for put_back in self.put_back:
            put_back()
        torch.autograd.graph.increment_version(self.params)
        for state, step in zip(self.stepped, self.steps, strict=True):
            state["step"] = step

    def update(self, rule: str, names: Mapping[str, bool]) -> None:
        """The operator alone, with the arguments that have been gathered."""
        if self.headers is not None:
            ops.update_by_address(rule, self.headers, self.scalars, **self.keywords())
        else:
            ops.update(rule, *self.tensors(names), self.scalars, **self.keywords())


def layout_of(tensor: Tensor) -> tuple[Any, ...]:
    """Everything about a tensor but where it lies."""
    strided = tensor.layout is torch.strided
    return tensor.layout, tensor.dtype, tensor.device, tensor.numel(), strided and tensor.is_contiguous()


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.contiguous() if tensor.layout is torch.strided else tensor
