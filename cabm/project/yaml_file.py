"""YAML files as checked sections: whatever is not understood is refused, in one line that names the key."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cabm.errors import InputError, describe

Parsed = TypeVar("Parsed", bound=BaseModel)


def read_yaml(path: str | Path, model: type[Parsed], renamed: Mapping[str, str] | None = None) -> Parsed:
    """Read a YAML file into a pydantic model.

    Args:
        path: the file.
        model: what it should hold.
        renamed: old keys, as ``section.name``, and their new ones; an old key is refused by a line that
            names the new one.

    Raises:
        InputError: the file is missing, is not YAML, has a key twice, or has a key or value that is not
            understood.
    """
    path = Path(path)
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run from the project's folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected sections such as {', '.join(list(model.model_fields)[:2])}")
    for old, new in (renamed or {}).items():
        section, _, key = old.rpartition(".")
        if key in _section(content, section):
            raise InputError(f"{path}: {old} is now {new}; rename the key")
    try:
        parsed = model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error, content)}") from None
    for key in _misplaced_switches(content, parsed):
        raise InputError(f"{path}: {key}: true or false where a number or a name belongs")
    return parsed


class _Loader(yaml.SafeLoader):
    """The safe loader, which takes the last of several equal keys, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def _misplaced_switches(raw: Any, parsed: Any) -> Iterator[str]:
    """Yield the keys whose true or false pydantic took for 1 or 0."""
    if isinstance(raw, bool) and not isinstance(parsed, bool):
        yield ""
    elif isinstance(raw, (dict, list)):
        for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
            inner = getattr(parsed, key) if isinstance(parsed, BaseModel) else parsed[key]
            yield from (f"{key}.{rest}".rstrip(".") for rest in _misplaced_switches(value, inner))
