"""Hints from a YAML or JSON file: from a parameter's name or pattern to its options."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch_bnb.overrides.spec import OverrideError, OverrideSpec, validate


def load_overrides(path: str | Path, section: Sequence[str] = ()) -> dict[str, OverrideSpec]:
    """Reads hints as `GlobalOptimManager.override_named` takes them.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file of the shape ``{"*.embed*.weight": {optim_bits: 32}}``. Numbers
            may be written as ``1e-4``.
        section: The keys that lead to the hints in a file that holds more: ``("bnb_config", "overrides")``.

    Returns:
        The hints in the file's order.

    Raises:
        OverrideError: The file is no such mapping; file, line and key are named.
        OSError: It cannot be read.
        ModuleNotFoundError: PyYAML is not installed (``pip install pyyaml``).
    """
    if not importlib.util.find_spec("yaml"):
        raise ModuleNotFoundError("Hints from a file need PyYAML: pip install pyyaml")
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        loader = _loader_class()(text.replace("\t", " ") if path.suffix == ".json" else text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise OverrideError(f"{path}: {error}") from None
    try:
        node = loader.get_single_node()
        for name in section:
            found = {key.value: value for key, value in _pairs(node, path, "the file", loader)}
            if name not in found:
                raise OverrideError(f"{path}: there is no {name!r}; there are {', '.join(found)}")
            node = found[name]
        result: dict[str, Any] = {}
        for key, value in _pairs(node, path, "the file", loader):
            where = f"{path}, line {key.start_mark.line + 1}"
            name = loader.construct_object(key)
            if name in result:
                raise OverrideError(f"{where}: {name!r} stands there twice")
            config = {}
            for option, setting in _pairs(value, path, repr(name), loader):
                where = f"{path}, line {option.start_mark.line + 1}: {name!r}"
                spelled = loader.construct_object(option)
                if spelled in config:
                    raise OverrideError(f"{where}: {spelled!r} stands there twice")
                try:
                    config |= {spelled: loader.construct_object(setting, deep=True)}
                    validate({spelled: config[spelled]})
                except (ValueError, yaml.YAMLError) as error:
                    raise OverrideError(f"{where}: {error}") from None
            result[name] = validate(config)
        return result
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        quote = "; a name that begins with * must be quoted" if error.context == "while scanning an alias" else ""
        raise OverrideError(f"{path}, line {line}: {error.problem}{quote}") from None
    finally:
        loader.dispose()


def _pairs(node: Any, path: Path, what: str, loader: Any) -> Iterator[tuple[Any, Any]]:
    """The (key, value) nodes of a mapping."""
    import yaml

    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        found = loader.construct_object(node, deep=True)
        raise OverrideError(f"{path}, line {line}: {what} must be a mapping, got {found!r}")
    for key, value in node.value:
        if not (isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:str"):
            line = key.start_mark.line + 1
            raise OverrideError(f"{path}, line {line}: {what} has a key that is no string: {key.value!r}")
        yield key, value


def _loader_class() -> Any:
    """PyYAML's safe loader, reading 1e-4 as a number as JSON and YAML 1.2 do."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader
