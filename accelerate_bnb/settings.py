"""What a user says outside of code: ``ACCELERATE_BNB_*`` variables, and files with a ``bnb_config:`` section.

Every value is read from its text by one parser, wherever it stands. Knows no optimizer.
"""

import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import str_to_bool

from torch_bnb import load_overrides

PREFIX = "ACCELERATE_BNB_"
SECTION = "bnb_config"
"""The key of a config file of Accelerate's under which the plugin's settings stand."""


def _overrides(text: str) -> dict[str, Any]:
    """JSON, or the path of a file."""
    if not text.lstrip().startswith("{"):
        return load_overrides(text)
    return json.loads(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.strip("[]() ").split(","))


PARSERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "optimizer": (str, "an optimizer's name"),
    "lr": (float, "a number"),
    "betas": (_numbers, "numbers, as 0.9,0.999"),
    "weight_decay": (float, "a number"),
    "optim_bits": (int, "8 or 32"),
    "min_8bit_size": (int, "an integer"),
    "overrides": (_overrides, "a mapping of patterns to options, or the path of a file with one"),
    "embeddings_32bit": (lambda text: bool(str_to_bool(text)), "true or false"),
    "paged": (lambda text: bool(str_to_bool(text)), "true or false"),
    "strict": (lambda text: bool(str_to_bool(text)), "true or false"),
}
"""By field of the plugin, how its text is read and what is expected."""


def parse(field: str, text: str, where: str) -> Any:
    """A field's value out of its text.

    Raises:
        ValueError: It is none; `where` names it.
    """
    parser, expected = PARSERS[field]
    try:
        return parser(text)
    except OSError as error:
        raise ValueError(f"{where}: {error}") from None
    except ValueError as error:
        reason = f": {error}" if field == "overrides" else ""
        raise ValueError(f"{where}={text!r}: expected {expected}{reason}") from None


def write(field: str, value: Any) -> str:
    """The text that `parse` reads back."""
    if field == "overrides":
        return json.dumps(value)
    return ",".join(map(repr, value)) if isinstance(value, (tuple, list)) else str(value)


def from_environment() -> dict[str, Any]:
    """The fields that ``ACCELERATE_BNB_*`` variables set; an empty variable sets none.

    Raises:
        ValueError: A variable is misspelt or its value impossible.
    """
    names = [*PARSERS, "config_file"]
    found = {}
    for variable, text in os.environ.items():
        if not variable.startswith(PREFIX) or not text:
            continue
        field = variable.removeprefix(PREFIX).lower()
        if field not in names:
            raise ValueError(unknown(variable, [f"{PREFIX}{name.upper()}" for name in names], "environment variable"))
        found[field] = text if field == "config_file" else parse(field, text, variable)
    return found


def from_file(path: str | Path) -> dict[str, Any]:
    """The fields that a YAML or JSON file sets.

    Args:
        path: A config file of Accelerate's with a ``bnb_config:`` section, or a file with that section's content alone.

    Raises:
        ValueError: The file is no such mapping, a key is unknown or there twice, a value impossible; line and key are
            named.
        OSError: It cannot be read.
    """
    root = read(path, yaml.compose)
    entries = _entries(root, str(path), "the file")
    inside: tuple[str, ...] = ()
    if SECTION in entries:
        inside = (SECTION,)
        entries = _entries(entries[SECTION], str(path), SECTION)
    found = {}
    for field, node in entries.items():
        where = f"{path}, line {node.start_mark.line + 1}: {field}"
        if field not in PARSERS:
            raise ValueError(f"{path}, line {node.start_mark.line + 1}: {unknown(field, PARSERS, 'key')}")
        if node.tag == "tag:yaml.org,2002:null":
            continue
        if field == "overrides" and isinstance(node, yaml.MappingNode):
            found[field] = load_overrides(path, section=(*inside, field))
        elif field == "betas" and isinstance(node, yaml.SequenceNode):
            found[field] = parse(field, ",".join(str(item.value) for item in node.value), where)
        elif isinstance(node, yaml.ScalarNode):
            text = node.value
            beside = Path(path).parent / text
            found[field] = parse(field, str(beside) if field == "overrides" else text, where)
        else:
            raise ValueError(f"{where}: expected {PARSERS[field][1]}")
    return found


def read(path: str | Path, by: Callable[..., Any] = yaml.load) -> Any:
    """What a YAML or JSON file holds.

    Args:
        path: The file.
        by: PyYAML's function.

    Raises:
        ValueError: It is neither; the file and the line are named.
        OSError: It cannot be read.
    """
    try:
        return by(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        quote = "; a name that begins with * must be quoted" if error.context == "while scanning an alias" else ""
        raise ValueError(f"{path}, line {line}: {error.problem}{quote}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None


def has_section(path: str | Path) -> bool:
    """Whether a file is one of Accelerate's with a section for the plugin."""
    content = read(path)
    return isinstance(content, dict) and SECTION in content


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """What to say of a name that nobody knows."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"


def _entries(node: Any, path: str, what: str) -> dict[str, Any]:
    """A mapping's value nodes by key."""
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}, line {node.start_mark.line + 1}: {what} must be a mapping")
    entries: dict[str, Any] = {}
    for key, value in node.value:
        if key.value in entries:
            raise ValueError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} stands there twice")
        entries[str(key.value)] = value
    return entries
