"""Models that ship with the package, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from cabm.errors import InputError


def packaged_models() -> tuple[str, ...]:
    """Return the names of the packaged models, such as ``edsr_x4/cabm``."""
    root = Path(str(files(__name__)))
    return tuple(sorted(str(path.parent.relative_to(root)) for path in root.glob("*/*/config.json")))


def model_directory(name: str) -> Path:
    """Return the directory of a model given as a path or as the name of a packaged one.

    Raises:
        InputError: there is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if name in packaged_models():
        return Path(str(files(__name__))) / name
    known = ", ".join(packaged_models()) or "none"
    raise InputError(f"{name}: no such model directory, nor a packaged model (packaged: {known})")
