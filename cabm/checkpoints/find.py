"""Find a model by its path, or by the name of one that ships with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from cabm.errors import InputError

DEFAULT_MODEL = "edsr_x4"


def find_model(model: str | Path) -> Path:
    """Return the directory of a model.

    Args:
        model: a model directory; the name of a packaged model, such as ``edsr_x4/float``; or its first
            half, ``edsr_x4``, for that network's CABM model.

    Raises:
        InputError: no such directory and no such packaged model.
    """
    path = Path(model)
    if path.is_dir():
        return path
    packaged = packaged_models()
    directory = packaged.get(str(model)) or packaged.get(f"{model}/cabm")
    if directory is None:
        known = ", ".join(packaged) or "none"
        raise InputError(f"{model}: no such model directory and no such packaged model (packaged: {known})")
    return directory


def packaged_models() -> dict[str, Path]:
    """Return the directories of the packaged models by name, such as ``edsr_x4/cabm``."""
    root = Path(str(files("cabm.checkpoints"))) / "pretrained"
    directories = sorted(path.parent for path in root.glob("*/*/config.json"))
    return {directory.relative_to(root).as_posix(): directory for directory in directories}
