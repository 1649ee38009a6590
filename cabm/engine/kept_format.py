"""How compiled models are written: a tree of values as JSON, then the bytes of its arrays, then a checksum.

Only objects of classes that the reader names are read back; nothing in a file is executed. But compiled
code trusts the sizes in it. The checksum finds damage, not malice: whoever can write to the folder could
also replace the compiled code beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from cabm.engine.arrays import LINE, empty

_DIGEST = hashlib.sha256().digest_size


class CannotBeKept(TypeError):
    """A value of a class that is not kept."""


class Writer:
    """Turns values into JSON values, and collects their arrays.

    Args:
        kinds: dataclasses whose fields are kept.
        special: by class: a function that returns the fields to keep of another object.
    """

    def __init__(
        self, kinds: Collection[type], special: dict[type, Callable[[Any], dict[str, Any]]]
    ) -> None:
        self._kinds, self._special = kinds, special
        self._arrays: list[np.ndarray] = []

    def encode(self, value: Any) -> Any:
        """Return a value as JSON values.

        Raises:
            CannotBeKept: it is, or holds, an object of another class.
        """
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.ndarray):
            self._arrays.append(np.ascontiguousarray(value))
            return {"array": len(self._arrays) - 1}
        if isinstance(value, tuple | list):
            return [self.encode(each) for each in value]
        if isinstance(value, dict):
            return {"pairs": [[self.encode(key), self.encode(each)] for key, each in value.items()]}
        name = type(value).__name__
        if type(value) in self._special:
            return {"kind": name, "fields": self._encoded(self._special[type(value)](value))}
        if type(value) in self._kinds:
            kept = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
            return {"kind": name, "fields": self._encoded(kept)}
        raise CannotBeKept(f"{name} cannot be kept")

    def content(self, value: Any) -> bytes:
        """Return the content of a file that holds a value."""
        tree, places, end = self.encode(value), [], 0
        for array in self._arrays:
            places.append([array.dtype.str, list(array.shape), end])
            end += array.nbytes + -array.nbytes % LINE
        head = json.dumps({"value": tree, "arrays": places}).encode()
        head += b" " * (-(len(head) + 8) % LINE)
        parts = [len(head).to_bytes(8, "little"), head]
        for array in self._arrays:
            parts += [array.tobytes(), bytes(-array.nbytes % LINE)]
        content = b"".join(parts)
        return content + hashlib.sha256(content).digest()

    def _encoded(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: self.encode(value) for name, value in values.items()}


def read(path: Path, kinds: dict[str, Callable[..., Any]]) -> Any:
    """Return the value in a file.

    Args:
        path: the file.
        kinds: what makes an object of its fields, by the name of its class.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    with path.open("rb") as file:
        memory = empty((os.fstat(file.fileno()).st_size,), np.uint8)
        content = memoryview(memory)[: file.readinto(memory)]
    if len(content) < 8 + _DIGEST or hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise ValueError(f"{path}: damaged")
    start = 8 + int.from_bytes(content[:8], "little")
    document = json.loads(bytes(content[8:start]))
    arrays = [np.ndarray(shape, dtype, content, start + at) for dtype, shape, at in document["arrays"]]

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(decode(each) for each in value)
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return arrays[value["array"]]
        if "pairs" in value:
            return {decode(key): decode(each) for key, each in value["pairs"]}
        return kinds[value["kind"]](**{name: decode(each) for name, each in value["fields"].items()})

    return decode(document["value"])
