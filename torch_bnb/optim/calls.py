"""One call of the operator: parameters that share device, scalars and options, gathered and then run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_bnb import ops
from torch_bnb.optim import state as storage
from torch_bnb.optim.sparse import Touched
from torch_bnb.optim.state import State


@dataclass
class Call:
    """What the operator gets."""

    scalars: dict[str, float]
    arguments: dict[str, Any]
    """Keyword arguments that hold for all parameters."""
    active: Mapping[str, bool]
    """The states that the configuration needs."""
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    stepped: list[State] = field(default_factory=list)
    """The parameters' whole states, of which `states` may hold pieces."""
    steps: list[int] = field(default_factory=list)
    """The step that each reaches."""
    grad_scales: list[Tensor] = field(default_factory=list)
    """For percentile clipping; empty without."""
    put_back: list[Callable[[], Any]] = field(default_factory=list)
    """For parameters in whose place a copy stands in `params`."""

    def add(self, parameter: Tensor, grad: Tensor, state: State, step: int) -> None:
        """Adds a parameter whose state is prepared."""
        self.stepped.append(state)
        self.steps.append(step)
        if grad.layout is torch.sparse_coo:
            piece = Touched(parameter, grad, state, self.active)
            self.put_back.append(piece.put_back)
            contiguous, grad, state = piece.parameter, piece.grad, piece.state
        elif not parameter.is_contiguous():
            contiguous = parameter.contiguous()
            self.put_back.append(partial(parameter.copy_, contiguous))
        else:
            contiguous = parameter
        self.params.append(contiguous)
        self.grads.append(grad.contiguous())
        self.states.append(state)

    def run(self, rule: str, names: Mapping[str, bool], indices: Sequence[int]) -> None:
        """Steps every parameter.

        Args:
            rule: Name of the operator.
            names: Its states.
            indices: Of the parameters among all of the optimizer's.
        """
        values: list[Tensor] = []
        absmax: list[Tensor] = []
        for name in names:
            kept = storage.gather(self.states, name) if name in self.active else storage.absent(len(self.states))
            values += kept[0]
            absmax += kept[1]
        own: dict[str, Any] = {"grad_scales": torch.stack(self.grad_scales)} if self.grad_scales else {}
        if self.arguments["stochastic_states"] or self.arguments["stochastic_weights"]:
            own["keys"] = [step << 32 | index for step, index in zip(self.steps, indices, strict=True)]
        ops.update(rule, self.params, self.grads, values, absmax, self.scalars, **self.arguments, **own)
        for put_back in self.put_back:
            put_back()
        torch.autograd.graph.increment_version(self.params)
        for state, step in zip(self.stepped, self.steps, strict=True):
            state["step"] = step
