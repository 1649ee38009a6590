"""Find a model by path, or by the name of one that ships with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from cabm.errors import InputError

DEFAULT_MODEL = "edsr_x4"


def packaged_models() -> tuple[str, ...]:
    """Return the names of the packaged models, such as ``edsr_x4/cabm``."""
    root = _packaged()
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
        return _packaged() / name
    known = ", ".join(packaged_models()) or "none"
    raise InputError(f"{name}: no such model directory, nor a packaged model (packaged: {known})")


def _packaged() -> Path:
    return Path(str(files("cabm.checkpoints"))) / "pretrained"


def find_model(model: str | Path) -> Path:
    """Return the directory of a model to upscale with, given as a directory or by name.

    A short name such as ``edsr_x4`` is that network's CABM model.

    Raises:
        InputError: there is none.
    """
    path = Path(model)
    if path.is_dir():
        return path
    name = str(model)
    for known in (name, f"{name}/cabm"):
        if known in packaged_models():
            return model_directory(known)
    return model_directory(name)
