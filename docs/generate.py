"""Writes what is said of the rules a second time, from their classes: ``python docs/generate.py``, or ``--check``.

These are the pages in ``docs/optimizers/`` and, by ``stub.py``, ``torch_bnb/optim/variants.pyi``. It must know no rule
by name: whatever is on a page is in the rule's class.
"""

import argparse
import doctest
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from stub import stub, variants_of

from torch_bnb.optim import options, rules, state
from torch_bnb.optim.base import BlockwiseOptimizer
from torch_bnb.overrides import spec

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "optimizers"
STUB = ROOT / "torch_bnb" / "optim" / "variants.pyi"
SECTIONS = ("Args", "Raises", "Note", "Example")

Rule = type[BlockwiseOptimizer]


def sections(rule: Rule) -> dict[str, str]:
    """A rule's docstring by section, without indentation; what stands before the first is ``summary``."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", inspect.getdoc(rule) or "", flags=re.MULTILINE)
    found = {"summary": parts[0].strip(), **dict(zip(parts[1::2], map(inspect.cleandoc, parts[2::2]), strict=True))}
    for name in SECTIONS:
        if not found.get(name):
            raise SystemExit(f"{rule.__name__}: its docstring has no section {name}, which its page needs")
    return found


def meanings(arguments: str) -> dict[str, str]:
    """What a section Args says of each argument, on one line."""
    parts = re.split(r"^(\w+): ", arguments, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the header's columns are separated by |."""
    lines = [f"| {header} |", f"|{'---|' * len(header.split('|'))}"]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)])


def option_table(names: Iterable[str], allowed: Mapping[str, spec.Option], rule: Rule) -> str:
    """Options with type, default, what is allowed and what they mean."""
    parameters, meant = rule.__signature__.parameters, meanings(sections(rule)["Args"])
    rows = []
    for name in names:
        if name not in meant:
            raise SystemExit(f"{rule.__name__}: its docstring's Args say nothing of {name}")
        kind, default = inspect.formatannotation(parameters[name].annotation), parameters[name].default
        rows.append((f"`{name}`", f"`{kind}`", f"`{default!r}`", allowed[name].allowed, meant[name]))
    return table("option | type | default | allowed | meaning", rows)


def state_table(rule: Rule, kept: Mapping[str, bool]) -> str:
    """States with the names of both forms; `kept` are those of the default options."""
    rows = [
        (
            f"`{name}`",
            "signed" if signed else "not negative",
            f"`{name}`, float32",
            f"`{state.codes_key(name)}`, uint8, and `{state.absmax_key(name)}`, float32",
            "by default" if name in kept else "if an option asks for it",
        )
        for name, signed in rule.states.items()
    ]
    return table("state | numbers | at 32 bits | at 8 bits | kept", rows)


def default_states(rule: Rule) -> Mapping[str, bool]:
    """The states that the default options need."""
    optimizer = rule([torch.zeros(1)])
    return optimizer.active_states(optimizer.param_groups[0])


def bytes_per_parameter(rule: Rule) -> str:
    """In 8 bits: with the default options, and with every state where that is more."""
    of_one = state.size([1 << 20], state.Form.FLAT) / (1 << 20)
    counts = dict.fromkeys((len(default_states(rule)), len(rule.states)))
    return " to ".join(f"{count * of_one:.2f}" for count in counts)


def paper(rule: Rule) -> str:
    """A link to the first source that the summary names."""
    address = re.search(r"https?://[^\s)]+", sections(rule)["summary"])
    if address is None:
        raise SystemExit(f"{rule.__name__}: the first lines of its docstring name no source")
    arxiv = re.fullmatch(r"https://arxiv\.org/abs/(.*)", address[0])
    return f"[{f'arXiv {arxiv[1]}' if arxiv else address[0].split('/')[2]}]({address[0]})"


def headline(rule: Rule) -> tuple[str, str]:
    """The docstring's first paragraph, its addresses as links, and the rest of the summary."""
    first, _, rest = sections(rule)["summary"].partition("\n\n")
    text = re.sub(r"(https?://[^\s)]+)", r"<\1>", first.replace("``", "`"))
    formula = re.match(r"::\n\n((?:    .*\n?|\n)+)", rest)
    if formula is None:
        raise SystemExit(f"{rule.__name__}: its docstring does not show the update below `::`")
    after = rest[formula.end() :].strip().replace("``", "`")
    return text, "\n\n".join(["```text\n" + inspect.cleandoc(formula[1]) + "\n```", *([after] if after else [])])


def example(rule: Rule) -> str:
    """The docstring's example as a program, its results as comments."""
    lines = []
    for part in doctest.DocTestParser().get_examples(sections(rule)["Example"]):
        lines += [part.source.rstrip(), *(f"# {line}" for line in part.want.splitlines())]
    return "\n".join(lines)


def page(rule: Rule) -> str:
    """A rule's page."""
    said, (text, update) = sections(rule), headline(rule)
    return f"""<!-- Written by docs/generate.py from the class's docstring: change that, then run `make docs`. -->
# {rule.__name__}

{text}

{update}

## Advice

{said["Note"].replace("``", "`")}

## Options

{option_table(rule.options, rule.options, rule)}

Beside these it takes the [options of every optimizer](README.md#options-of-every-optimizer). Each option may be
[another for one parameter](../overrides.md).

## State

{state_table(rule, default_states(rule))}

Codes have the parameter's shape; there is one absmax for 256 elements, or a single one with `block_wise=False`. That is
{bytes_per_parameter(rule)} bytes per parameter in 8 bits. `step`, an integer, is beside them.

## Names

`{rule.__name__}` has 32-bit state unless `optim_bits=8` is passed. [Other names](README.md#names) fix it:
{", ".join(f"`{name}`" for name in variants_of(rule))}.

## Example

```python
{example(rule)}
```
"""


def index(every: list[Rule]) -> str:
    """The page that lists the rules and the options that all of them take."""
    rows = []
    for rule in every:
        note = " ".join(sections(rule)["Note"].replace("``", "`").split())
        advice = re.split(r"(?<=\.) ", note, maxsplit=1)[0]
        kept = ", ".join(f"`{name}`" for name in rule.states)
        rows.append((f"[{rule.__name__}]({page_name(rule)})", kept, bytes_per_parameter(rule), paper(rule), advice))
    common = option_table(options.DEFAULTS, {**spec.COMMON, **options.CONSTRUCTOR_ONLY}, every[0])
    return f"""<!-- Written by docs/generate.py from the classes' docstrings: change those, then run `make docs`. -->
# Optimizers

{table("optimizer | states | bytes per parameter in 8 bits | paper | when", rows)}

Where two sizes are given, the first is that of the default options. Parameters with fewer than `min_8bit_size`
elements, those in float64 and, in a registered model, embeddings keep 32-bit state: 4 bytes per parameter and state.

## Options of every optimizer

{common}

Each but the last three may be [another for one parameter](../overrides.md).

## Names

Every optimizer has five more names: with `8bit` or `32bit` behind its own, which fixes `optim_bits`; with `Paged`
before it; and with both. `Paged` keeps state in [host memory](../cuda.md#state-in-host-memory) (`state_device="cpu"`).
On a CPU that is where state is, so there it is the plain optimizer.
"""


def page_name(rule: Rule) -> str:
    """A page's file."""
    return f"{rule.__name__.lower()}.md"


def main() -> None:
    """Writes, or with --check compares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if a file differs, write nothing")
    check = parser.parse_args().check
    every: list[Rule] = [value for name, value in vars(rules).items() if name in rules.__all__]  # as they are defined
    wanted: dict[Path, Any] = {PAGES / page_name(rule): page(rule) for rule in every}
    wanted |= {PAGES / "README.md": index(every), STUB: stub()}
    old = {path for path in PAGES.glob("*.md") if path not in wanted}
    stale = old | {path for path, text in wanted.items() if not path.exists() or path.read_text() != text}
    if check and stale:
        names = ", ".join(sorted(str(path.relative_to(ROOT)) for path in stale))
        raise SystemExit(f"not what the rules' classes say: {names}; run `make docs`")
    if not check:
        PAGES.mkdir(exist_ok=True)
        for path in old:
            path.unlink()
        for path, text in wanted.items():
            path.write_text(text)


if __name__ == "__main__":
    main()
