"""What training takes in memory: planned from a model on any device, or measured on an optimizer."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from torch_bnb.optim import AdamW, host, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.base import BlockwiseOptimizer
from torch_bnb.optim.lookup import by_name
from torch_bnb.optim.slots import Place
from torch_bnb.overrides import OverrideSpec, registry
from torch_bnb.overrides.hints import Level
from torch_bnb.overrides.names import Key
from torch_bnb.tables import readable_bytes, render
from torch_bnb.verify import innermost


@dataclass(frozen=True)
class Bytes:
    """Bytes for one parameter, or in total."""

    parameter: int
    gradient: int
    state: int
    """Of the optimizer, in the configuration at hand; `report` measures it."""
    planned: int
    """The same once every parameter has stepped."""
    state_32bit: int
    """The same with all state in 32 bits."""
    state_8bit: int
    """The same with all state in 8 bits, as far as `min_8bit_size` allows."""
    state_on_host: int
    """What of `state` is kept in host memory because of ``state_device="cpu"``."""


@dataclass(frozen=True)
class Row(Bytes):
    """One parameter."""

    name: str
    shape: tuple[int, ...]
    bits: int | None
    """Of its state; None for a frozen parameter."""
    default_embedding: bool
    """Kept at 32 bits because it is an embedding and nothing else was said."""


@dataclass(frozen=True, repr=False)
class Memory:
    """Rows, one per parameter, their total, and a table of it as text."""

    rows: tuple[Row, ...]
    title: str
    remarks: tuple[str, ...] = ()
    """Lines below the table."""

    @property
    def total(self) -> Bytes:
        """Sums over the rows."""
        return Bytes(**{f.name: sum(getattr(row, f.name) for row in self.rows) for f in fields(Bytes)})

    @property
    def embedding_bytes(self) -> int:
        """What the default of 32-bit embeddings costs."""
        return sum(row.planned - row.state_8bit for row in self.rows if row.default_embedding)

    @property
    def headline(self) -> str:
        """One line on what the state will take, for logs."""
        planned, full = readable_bytes(self.total.planned), readable_bytes(self.total.state_32bit)
        name = self.title.partition(",")[0]
        if not any(row.bits == 8 for row in self.rows):
            return f"all state of {name} stays in 32 bits, {planned}"
        kept = f"; {readable_bytes(self.embedding_bytes)} of it because embeddings keep 32 bits"
        return f"state of {name} takes {planned} instead of {full}{kept if self.embedding_bytes else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers."""
        rows = [asdict(row) for row in self.rows]
        return {"rows": rows, "total": asdict(self.total), "embedding_bytes": self.embedding_bytes}

    def __str__(self) -> str:
        return _table(self)

    __repr__ = __str__


def plan(
    model: nn.Module,
    optimizer: type[BlockwiseOptimizer] | str = AdamW,
    optim_bits: int | None = None,
    overrides: Mapping[Key, OverrideSpec] | None = None,
    **options: Any,
) -> Memory:
    """Bytes of parameters, gradients and optimizer state, before anything is allocated.

    Args:
        model: On any device, ``meta`` included. Hints about its parameters count as they would for an optimizer built
            now: those that its classes declare, and 32-bit embeddings, once it has been registered.
        optimizer: A class of ``torch_bnb.optim``, or its name in any spelling: ``"adamw8bit"``.
        optim_bits: Bits per element of state, 8 or 32; None: 8, or what a class like ``Adam32bit`` fixes.
        overrides: Patterns over its names to options, as in `GlobalOptimManager.override_named`, for this plan only.
        **options: Further options of the optimizer that bear on memory, ``momentum`` or ``min_8bit_size``.

    Returns:
        A row for every parameter, in bytes; frozen ones without gradient and state.

    Raises:
        TypeError: `model` is no module, `optimizer` no class of ``torch_bnb.optim``, or an option unknown to it.
        ValueError: No optimizer has the name, or an option has an impossible value.
        OverrideError: A hint or pattern fits no parameter, or says something impossible.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> with torch.device("meta"):
        ...     model = torch.nn.Linear(4096, 4096, bias=False)
        >>> memory = bnb.plan(model)
        >>> memory.total.state_32bit, memory.total.state
        (134217728, 34078720)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"plan: expected an nn.Module, got {type(model).__name__}")
    if isinstance(optimizer, str):
        optimizer = by_name(optimizer)
    if not (isinstance(optimizer, type) and issubclass(optimizer, BlockwiseOptimizer)):
        got = repr(optimizer) if isinstance(optimizer, type) else f"an instance of {type(optimizer).__name__}"
        raise TypeError(f"plan: expected an optimizer class of torch_bnb.optim, got {got}")
    if optim_bits is None and optimizer.leaves_bits_open():
        optim_bits = 8
    if optim_bits is not None:
        options["optim_bits"] = optim_bits
    found = registry.named_hints(model, overrides)
    trainable = [(name, parameter) for name, parameter, _ in found if parameter.requires_grad]
    places: dict[int, Place] = {}
    if trainable:
        built = optimizer(trainable, **options)
        hints = {id(parameter): hints for _, parameter, hints in found}
        places = {id(place.parameter): place for place in built.configurations(hints)}
    rows = []
    for name, parameter, _ in found:
        if place := places.get(id(parameter)):
            rows.append(_row(place, _size(parameter), _planned(place)))
        else:
            rows.append(_other(name, parameter))
    title = f"{type(model).__name__}, planned for {optimizer.__name__}"
    return Memory(tuple(rows), title, _of_unknown_embeddings(model, places))


def _of_unknown_embeddings(model: nn.Module, places: Mapping[int, Place]) -> tuple[str, ...]:
    """A remark on embeddings that would keep 32-bit state if they were known to be some."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = [places[weight] for weight in weights & places.keys() - registry.registered_parameters()]
    unknown = [place for place in found if place.bits == 8 and "optim_bits" not in place.overrides]
    if not unknown:
        return ()
    more = sum(_row(place, 0, 0).state_32bit - _planned(place) for place in unknown)
    return (
        f"Embeddings are counted in 8 bits. Once the model is registered, as plugins do, they keep 32-bit state: "
        f"{readable_bytes(more)} more.",
    )


def report(optimizer: torch.optim.Optimizer) -> Memory:
    """Bytes measured: what an optimizer's parameters, their gradients and its state take now.

    Args:
        optimizer: Any ``torch.optim.Optimizer``; frameworks' wrappers are looked through. Where it is not one of
            torch_bnb, the columns for 32 and 8 bits repeat what was measured.

    Returns:
        A row for every parameter of its groups, in bytes.

    Raises:
        TypeError: `optimizer` is no ``torch.optim.Optimizer``.
    """
    optimizer = innermost(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"report: expected a torch.optim.Optimizer, got {type(optimizer).__name__}; see plan")
    rows = []
    if isinstance(optimizer, BlockwiseOptimizer):
        for place in optimizer.configurations():
            gradient = 0 if place.parameter.grad is None else _size(place.parameter.grad)
            measured = _size_of_state(optimizer.state.get(place.parameter, {}))
            row = _row(place, gradient, measured)
            steps = place.parameter.requires_grad or gradient or measured
            rows.append(row if steps else _frozen(row))
    else:
        for g, group in enumerate(optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                gradient = 0 if parameter.grad is None else _size(parameter.grad)
                state = _size_of_state(optimizer.state.get(parameter, {}))
                name = f"group {g}, parameter {i}"
                rows.append(_other(name, parameter, gradient, state))
    return Memory(tuple(rows), f"{type(optimizer).__name__}, measured")


def _row(place: Place, gradient: int, state: int) -> Row:
    shape = sharding.local(place.parameter).shape
    form_8bit = storage.wanted({**place.config, "optim_bits": 8}, place.parameter)
    in_8bit = form_8bit is not storage.Form.FLOAT32
    said = [hint for hint in place.hints if "optim_bits" in hint.config]
    return Row(
        parameter=_size(place.parameter),
        gradient=gradient,
        state=state,
        planned=_planned(place),
        state_32bit=len(place.states) * storage.size(shape, storage.Form.FLOAT32) + _history(place),
        state_8bit=len(place.states) * storage.size(shape, form_8bit) + _history(place),
        state_on_host=max(0, state - _history(place)) if host.on_host(place.config) else 0,
        name=place.name,
        shape=tuple(place.parameter.shape),
        bits=place.bits,
        default_embedding=in_8bit and bool(said) and all(hint.level is Level.EMBEDDING for hint in said),
    )


def _other(name: str, parameter: Tensor, gradient: int = 0, state: int = 0) -> Row:
    """A parameter that no optimizer of torch_bnb steps."""
    return Row(
        parameter=_size(parameter),
        gradient=gradient,
        state=state,
        planned=state,
        state_32bit=state,
        state_8bit=state,
        state_on_host=0,
        name=name,
        shape=tuple(parameter.shape),
        bits=None,
        default_embedding=False,
    )


def _frozen(row: Row) -> Row:
    """A parameter that will have no state as long as it is frozen."""
    return replace(row, planned=0, state_32bit=0, state_8bit=0, bits=None, default_embedding=False)


def _planned(place: Place) -> int:
    form = storage.wanted(place.config, place.parameter)
    return len(place.states) * storage.size(sharding.local(place.parameter).shape, form) + _history(place)


def _history(place: Place) -> int:
    """Of the norms that percentile clipping keeps, however large the parameter is."""
    return 4 * storage.HISTORY_LENGTH if place.config["percentile_clipping"] < 100 else 0


def _size(tensor: Tensor) -> int:
    tensor = sharding.local(tensor)
    return tensor.numel() * tensor.element_size()


def _size_of_state(state: Mapping[str, Any]) -> int:
    """A step count, even in a tensor, is no memory that anyone plans."""
    tensors: Iterable[Tensor] = (value for value in state.values() if isinstance(value, Tensor))
    return sum(_size(tensor) for tensor in tensors if tensor.dim() > 0)


def _table(memory: Memory) -> str:
    header = ("parameter", "shape", "bits", "parameters", "gradients", "state", "32-bit", "8-bit")
    total = memory.total
    cells = [
        (row.name, "x".join(map(str, row.shape)) or "1", str(row.bits or ""), *_columns(row)) for row in memory.rows
    ]
    cells.append(("total", "", "", *_columns(total)))
    notes = [
        f"With parameters and gradients: {readable_bytes(total.parameter + total.gradient + total.state)}, "
        f"against {readable_bytes(total.parameter + total.gradient + total.state_32bit)} with all state in 32 bits."
    ]
    if memory.embedding_bytes:
        cost = readable_bytes(memory.embedding_bytes)
        notes.append(f"Embeddings keep 32-bit state, which costs {cost} (embeddings_32bit=False turns it off).")
    if total.state_on_host:
        kept = readable_bytes(total.state_on_host)
        notes.append(f"{kept} of the state are kept in host memory (state_device='cpu').")
    return "\n".join([render(header, cells, left=("parameter",), title=memory.title), *notes, *memory.remarks])


def _columns(b: Bytes) -> tuple[str, ...]:
    return tuple(map(readable_bytes, (b.parameter, b.gradient, b.state, b.state_32bit, b.state_8bit)))
