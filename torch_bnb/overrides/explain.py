"""Who gets what, and which hint said so: the answer of `GlobalOptimManager.explain`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from torch_bnb.overrides import registry
from torch_bnb.overrides.hints import Hint, Level
from torch_bnb.overrides.resolve import by_strength, merge
from torch_bnb.tables import render


@dataclass(frozen=True)
class Setting:
    """One option of one hint."""

    option: str
    value: Any
    source: str
    """Who gave the hint."""
    won: bool
    """Whether the value holds, because no stronger hint sets the option."""


@dataclass(frozen=True)
class Row:
    """One parameter."""

    name: str
    shape: tuple[int, ...]
    bits: int | None
    """Of its state: 8 or 32. None if a module was explained, no optimizer."""
    lr: float | None
    """The effective learning rate now. None as for `bits`."""
    overrides: dict[str, Any]
    """Every overridden option and the value that holds."""
    hints: tuple[Setting, ...]
    """Every option of every hint, the strongest hint first."""

    @property
    def winners(self) -> dict[str, str]:
        """By option, the source of the hint that holds."""
        return {setting.option: setting.source for setting in self.hints if setting.won}

    @property
    def losers(self) -> dict[str, list[str]]:
        """By option, the sources of the hints that do not hold, the strongest first."""
        lost: dict[str, list[str]] = {}
        for setting in self.hints:
            if not setting.won:
                lost.setdefault(setting.option, []).append(setting.source)
        return lost


@dataclass(frozen=True, repr=False)
class Explanation(Sequence[Row]):
    """Rows, one per parameter, that print as a table."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """A row by position, or by a parameter's name."""
        if isinstance(index, str):
            for row in self.rows:
                if row.name == index:
                    return row
            raise KeyError(f"no parameter {index!r}; there are {', '.join(row.name for row in self.rows[:8])}")
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain lists, dicts and numbers, one dict per row."""
        return [{**asdict(row), "winners": row.winners, "losers": row.losers} for row in self.rows]

    def __str__(self) -> str:
        header = ("parameter", "shape", "bits", "lr", "overrides", "lost")
        return render(header, [_cells(row) for row in self.rows], left=("parameter", "overrides", "lost"))

    __repr__ = __str__


def wrappers_of(optimizer: Any) -> Iterator[Any]:
    """An optimizer's wrappers, the outermost first, and last the optimizer itself.

    Frameworks' wrappers keep what they wrap as ``.optimizer``.
    """
    yield optimizer
    while not hasattr(optimizer, "configurations") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
        yield optimizer


def explain(model_or_optimizer: Any) -> Explanation:
    """Rows for a module's parameters, or for an optimizer's."""
    if isinstance(model_or_optimizer, nn.Module):
        found = registry.named_hints(model_or_optimizer)
        return Explanation(tuple(_row(name, p, None, None, merge(hints), hints) for name, p, hints in found))
    *_, optimizer = wrappers_of(model_or_optimizer)
    if not hasattr(optimizer, "configurations"):
        got = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        raise TypeError(f"explain: expected an nn.Module or an optimizer of torch_bnb, got a {got}")
    places = optimizer.configurations()
    return Explanation(tuple(_row(p.name, p.parameter, p.bits, p.config["lr"], p.overrides, p.hints) for p in places))


def idle_patterns(model: nn.Module, trained: Iterable[Tensor]) -> list[str]:
    """As `GlobalOptimManager.idle_patterns`."""
    held = set(map(id, trained))
    fits: dict[str, list[tuple[str, bool]]] = {}
    for name, parameter, given in registry.named_hints(model):
        for source in (hint.source for hint in given if hint.level is Level.PATTERN):
            fits.setdefault(source, []).append((name, id(parameter) in held))
    said = []
    for source, found in fits.items():
        if not any(trains for _, trains in found):
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            some = ", ".join(name for name, _ in found[:3])
            said.append(
                f"{source} fits only {some}{more}, which no optimizer has: frozen, or left out of it; it will hold "
                "once one has been given them"
            )
    return said


def _row(name: str, parameter: Any, bits: int | None, lr: Any, overrides: dict[str, Any], hints: Sequence[Hint]) -> Row:
    settings: list[Setting] = []
    for hint in reversed(by_strength(hints)):
        for option, value in hint.config.items():
            won = not any(setting.option == option for setting in settings)
            settings.append(Setting(option, value, hint.source, won))
    return Row(name, tuple(parameter.shape), bits, None if lr is None else float(lr), dict(overrides), tuple(settings))


def _cells(row: Row) -> tuple[str, ...]:
    won = [f"{setting.option}={setting.value} by {setting.source}" for setting in row.hints if setting.won]
    lost = [f"{setting.option}={setting.value} by {setting.source}" for setting in row.hints if not setting.won]
    return (
        row.name,
        "x".join(map(str, row.shape)) or "1",
        "" if row.bits is None else str(row.bits),
        "" if row.lr is None else f"{row.lr:.3g}",
        "\n".join(won),
        "\n".join(lost),
    )
