"""Folders that commands write."""

from __future__ import annotations

from pathlib import Path

from cabm.errors import InputError

OURS = (".json", ".safetensors")
"""Suffixes of the files in a model directory."""


def replaceable_folder(path: Path) -> Path:
    """Return ``path`` if it is new, empty, or a model directory, which a command may replace as a whole.

    Raises:
        InputError: it contains other files or folders; the message names the first.
    """
    if path.is_dir():
        foreign = [entry for entry in sorted(path.iterdir()) if entry.is_dir() or entry.suffix not in OURS]
        if foreign:
            raise InputError(f"{path}: contains other files, such as {foreign[0].name}; name a new folder")
    return path
