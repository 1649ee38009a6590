"""What commands may replace."""

from __future__ import annotations

from pathlib import Path

from cabm.errors import InputError

OURS = (".json", ".safetensors", ".onnx", ".data")
"""Suffixes of the files that model directories and exports hold."""


def replaceable_folder(path: Path) -> Path:
    """Return a folder to write that is new, empty, or holds what such a command wrote.

    Commands replace a folder as a whole: one that holds anything else stays as it is.

    Raises:
        InputError: it holds something else; names the first.
    """
    if path.is_dir():
        foreign = [entry for entry in sorted(path.iterdir()) if entry.is_dir() or entry.suffix not in OURS]
        if foreign:
            raise InputError(
                f"{path}: would be replaced with all it holds, such as {foreign[0].name}; name a new folder"
            )
    return path
