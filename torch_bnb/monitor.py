"""How good an optimizer's 8-bit states are, measured at a step: what rounding loses, what it freezes, what moves.

Nothing here changes an optimizer. A parameter is stepped on a copy, in the bits that it has and in 32 bits, and the
two are compared; so what is measured is the rule itself, whatever it is.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from torch_bnb.memory import report
from torch_bnb.optim import state as storage
from torch_bnb.optim.base import BlockwiseOptimizer
from torch_bnb.optim.slots import Place

METRICS = ("quantization_error", "unmoved_codes", "update_to_weight")
"""Names of the measured ratios, as attributes of `Quality`."""

MOST_ELEMENTS = 2**26
"""Of the parameters that are copied at a time; a larger parameter is alone."""


@dataclass(frozen=True)
class Quality:
    """Sums over the elements of one parameter, or of several, and their ratios."""

    error: float
    """Squares of what encoding changes in the states that are kept in 8 bits."""
    exact: float
    """Squares of those states as float32 would have them."""
    unmoved: float
    """Codes that the step leaves as they were."""
    codes: int
    """Codes in all."""
    update: float
    """Squares of what the step changes in the weights."""
    weight: float
    """Squares of the weights."""
    state_bytes: int
    """Of state, before the step."""

    @property
    def quantization_error(self) -> float:
        """Norm of what encoding changes in the states, relative to their norm. 0 where no state is in 8 bits."""
        return _ratio(self.error, self.exact) ** 0.5

    @property
    def unmoved_codes(self) -> float:
        """Share of the codes that the step leaves as they were. 0 where no state is in 8 bits."""
        return _ratio(self.unmoved, self.codes)

    @property
    def update_to_weight(self) -> float:
        """Norm of the step's change of the weights, relative to the norm of the weights."""
        return _ratio(self.update, self.weight) ** 0.5

    def __add__(self, other: "Quality") -> "Quality":
        return Quality(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Measurement:
    """One step of one optimizer."""

    parameters: Mapping[str, Quality]
    """By name; those that have a gradient."""
    groups: Mapping[int, Quality]
    """By index of the parameter group, over its parameters."""
    total: Quality
    """Over all."""

    def worst(self, metric: str) -> tuple[str, float]:
        """Name and value of the parameter with the largest value of a metric, one of `METRICS`; a NaN is the worst."""
        return max(
            ((name, getattr(quality, metric)) for name, quality in self.parameters.items()),
            key=lambda found: (math.isnan(found[1]), found[1]),
            default=("", 0.0),
        )


def measure(optimizer: BlockwiseOptimizer) -> Measurement:
    """Measures the step that the optimizer would make now, with the gradients at hand. Nothing is changed.

    Makes two more steps, on copies of some parameters at a time (2^26 elements together). What it measures stays on the
    device until all is done. Under a sharded optimizer every process must call it.

    Args:
        optimizer: One of torch_bnb, after the backward pass and before ``step``.

    Returns:
        A quality for every parameter with a gradient. Stochastic rounding draws other numbers than the step will.

    Raises:
        TypeError: Another optimizer.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.AdamW(model.named_parameters(), lr=1e-3, optim_bits=8)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 128)).square().mean().backward()
        ...     measurement = bnb.monitor.measure(optimizer)
        ...     optimizer.step()
        >>> name, error = measurement.worst("quantization_error")
        >>> name, 0 < error < 0.02
        ('weight', True)
        >>> measurement.total.unmoved_codes < 1
        True
    """
    if not isinstance(optimizer, BlockwiseOptimizer):
        raise TypeError(f"measure: expected an optimizer of torch_bnb.optim, got {type(optimizer).__name__}")
    sizes = [row.state for row in report(optimizer).rows]
    placed = list(zip(optimizer.configurations(), sizes, strict=True))
    placed = [(place, size) for place, size in placed if place.parameter.grad is not None]
    sums = [found for batch in _batches([place for place, _ in placed]) for found in _sums(optimizer, batch)]
    parameters: dict[str, Quality] = {}
    groups: dict[int, Quality] = {}
    for (place, size), (error, exact, unmoved, update, weight) in zip(placed, _on_host(sums), strict=True):
        codes = len(place.states) * place.parameter.numel() if place.bits == 8 else 0
        quality = Quality(error, exact, unmoved, codes, update, weight, size)
        name = place.name if place.name not in parameters else f"{place.name} (group {place.group})"
        parameters[name] = quality
        groups[place.group] = groups.get(place.group, _NOTHING) + quality
    return Measurement(parameters, groups, sum(groups.values(), _NOTHING))


def watch(
    optimizer: BlockwiseOptimizer, when: Callable[[], bool], then: Callable[[Measurement], Any]
) -> RemovableHandle:
    """Measures steps as they are made, after the gradients are complete: clipped, unscaled, from the closure if any.

    Args:
        optimizer: One of torch_bnb.
        when: Asked before every step; False costs nothing more.
        then: Gets the measurement before the step is made.

    Returns:
        Ends it by its ``remove()``, or as a context manager.

    Raises:
        TypeError: Another optimizer.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model, seen = torch.nn.Linear(128, 128), []
        >>> optimizer = bnb.optim.AdamW(model.parameters(), optim_bits=8)
        >>> with bnb.monitor.watch(optimizer, when=lambda: True, then=seen.append):
        ...     model(torch.randn(8, 128)).square().mean().backward()
        ...     optimizer.step()
        >>> len(seen)
        1
    """

    def before(stepped: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        if not when():
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            then(measure(optimizer))
            return None

        def measured_closure() -> Any:
            loss = closure()
            with torch.no_grad():
                then(measure(optimizer))
            return loss

        return args[:1], {**kwargs, "closure": measured_closure}

    if not isinstance(optimizer, BlockwiseOptimizer):
        raise TypeError(f"watch: expected an optimizer of torch_bnb.optim, got {type(optimizer).__name__}")
    return optimizer.register_step_pre_hook(before)


def as_metrics(measurement: Measurement, prefix: str = "optimizer_state") -> dict[str, float]:
    """A measurement by keys, for a tracker: the bytes, every group's ratios, and the worst parameter's.

    Args:
        measurement: The one to flatten.
        prefix: Of every key: ``{prefix}/state_bytes``, ``{prefix}/group0/quantization_error``,
            ``{prefix}/worst/quantization_error``.
    """
    metrics = {f"{prefix}/state_bytes": float(measurement.total.state_bytes)}
    for index, quality in measurement.groups.items():
        metrics[f"{prefix}/group{index}/state_bytes"] = float(quality.state_bytes)
        metrics |= {f"{prefix}/group{index}/{metric}": getattr(quality, metric) for metric in METRICS}
    metrics |= {f"{prefix}/worst/{metric}": measurement.worst(metric)[1] for metric in METRICS}
    return metrics


_NOTHING = Quality(0.0, 0.0, 0.0, 0, 0.0, 0.0, 0)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _on_host(sums: Sequence[Tensor]) -> list[list[float]]:
    """Numbers, fetched from each device at once."""
    devices = {found.device for found in sums}
    fetched = {device: iter(torch.stack([s for s in sums if s.device == device]).tolist()) for device in devices}
    return [next(fetched[found.device]) for found in sums]


def _batches(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Places in order, of a bounded number of elements together."""
    batch: list[Place] = []
    elements = 0
    for place in places:
        if batch and elements + place.parameter.numel() > MOST_ELEMENTS:
            yield batch
            batch, elements = [], 0
        batch.append(place)
        elements += place.parameter.numel()
    if batch:
        yield batch


@torch.no_grad()
def _sums(optimizer: BlockwiseOptimizer, places: Sequence[Place]) -> Iterator[Tensor]:
    """(error, exact, unmoved, update, weight) of `Quality` for each place: float64[5] on the parameter's device."""
    stepped = _step_on_copies(optimizer, places, [place.bits for place in places])
    in_8bit = [place for place in places if place.bits == 8]
    exact = dict(zip(map(id, in_8bit), _step_on_copies(optimizer, in_8bit, [32] * len(in_8bit)), strict=True))
    for place, (copy, state) in zip(places, stepped, strict=True):
        before = optimizer.state.get(place.parameter, {})
        wide = torch.promote_types(place.parameter.dtype, torch.float32)
        weight = place.parameter.detach().to(wide)
        update = _sum((copy.to(wide) - weight).square())
        error = wanted = unmoved = torch.zeros_like(update)
        if place.bits == 8:
            for key in map(storage.codes_key, place.states):
                if key in before:
                    unmoved = unmoved + _sum(before[key].to(state[key].device) == state[key])
            storage.prepare(state, place.states, copy, {**place.config, "optim_bits": 32, "state_device": None})
            in_32bit = exact[id(place)][1]
            for name in place.states:
                error = error + _sum((state[name] - in_32bit[name]).square())
                wanted = wanted + _sum(in_32bit[name].square())
        yield torch.stack([error, wanted, unmoved, update, _sum(weight.square())])


def _step_on_copies(
    optimizer: BlockwiseOptimizer, places: Sequence[Place], bits: Sequence[int]
) -> list[tuple[Tensor, storage.State]]:
    """Copies of parameters after the step, and their state."""
    rule = next(cls for cls in type(optimizer).__mro__ if "rule" in vars(cls))  # the variants' names fix their bits
    takes = inspect.signature(rule).parameters.keys() - {"params"}
    copies = [place.parameter.detach().clone().requires_grad_() for place in places]
    groups = []
    for place, copy, own_bits in zip(places, copies, bits, strict=True):
        copy.grad = place.parameter.grad
        options = {key: value for key, value in place.config.items() if key in takes}
        groups.append({**options, "optim_bits": own_bits, "state_device": None, "params": [copy]})
    if not groups:
        return []
    shadow = rule(groups, **{key: value for key, value in optimizer.defaults.items() if key in takes})
    for place, copy in zip(places, copies, strict=True):
        state = optimizer.state.get(place.parameter, {})
        # From host memory it comes to the device, behind what a step there still writes.
        own = {k: v.to(copy.device, copy=True) if isinstance(v, Tensor) else v for k, v in state.items()}
        shadow.state[copy] = own
    shadow.step()
    return [(copy.detach(), shadow.state[copy]) for copy in copies]


def _sum(values: Tensor) -> Tensor:
    total = values.sum(dtype=torch.float64)
    return total.full_tensor() if hasattr(total, "full_tensor") else total  # a DTensor's parts, from all processes
