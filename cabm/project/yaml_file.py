"""YAML files, read into pydantic models; an error is one line that names the key."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cabm.errors import InputError, describe

Parsed = TypeVar("Parsed", bound=BaseModel)

# The spellings of YAML 1.2, with which DVC reads the same file. PyYAML follows YAML 1.1, where 1e-06 is a
# text, 017 is 15, 1:30 is 90 and yes is true.
_SPELLINGS = {
    "tag:yaml.org,2002:bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?\d+|0o[0-7]+|0x[0-9a-fA-F]+"), "-+0123456789"),
    "tag:yaml.org,2002:float": (
        re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        "-+.0123456789",
    ),
}


def read_yaml(path: str | Path, model: type[Parsed], renamed: Mapping[str, str] | None = None) -> Parsed:
    """Read a YAML file into a pydantic model.

    Args:
        path: the file.
        model: the model of the file's content.
        renamed: old keys as ``section.name``, each with its new name, which the error names.

    Raises:
        InputError: the file is missing, is not YAML, has a duplicate, old or unknown key, or has a value
            that the model does not accept.
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
        values = content.get(section)
        if isinstance(values, dict) and key in values:
            raise InputError(f"{path}: {old} is now {new}; rename the key")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error, content)}") from None


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return which texts are no strings, by their first character, as YAML 1.2 says."""
    resolvers = {
        first: [(tag, pattern) for tag, pattern in entries if tag not in _SPELLINGS]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        pattern, firsts = _SPELLINGS[tag]
        for first in firsts:
            resolvers.setdefault(first, []).append((tag, re.compile(f"(?:{pattern.pattern})$")))
    return resolvers


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys and reads numbers and booleans as YAML 1.2 does."""

    yaml_implicit_resolvers: ClassVar = _resolvers()

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
