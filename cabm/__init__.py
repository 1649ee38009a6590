"""Content-aware bit mapping for super-resolution of large images."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cabm.checkpoints.model_directory import load_model
    from cabm.checkpoints.released import import_released
    from cabm.models.registry import build_model
    from cabm.tables.table import EdgeToBitTable
    from cabm.upscaling.size import OutputSize
    from cabm.upscaling.upscaler import Upscaler

__version__ = "0.1.0"
__all__ = ["EdgeToBitTable", "OutputSize", "Upscaler", "build_model", "import_released", "load_model"]

_MODULES = {
    "EdgeToBitTable": "cabm.tables.table",
    "OutputSize": "cabm.upscaling.size",
    "Upscaler": "cabm.upscaling.upscaler",
    "build_model": "cabm.models.registry",
    "import_released": "cabm.checkpoints.released",
    "load_model": "cabm.checkpoints.model_directory",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import cabm` costs nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
