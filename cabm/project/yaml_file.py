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

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


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


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys and reads ``2e-4`` as a number, as YAML 1.2 does."""

    yaml_implicit_resolvers: ClassVar = {
        first: [*resolvers, *([("tag:yaml.org,2002:float", _EXPONENT)] if first in "-+.0123456789" else [])]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key}", node.start_mark)
        return super().construct_mapping(node, deep)
