"""Content-aware bit mapping for super-resolution of large images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cabm.machine.lazy import imports_on_use

if TYPE_CHECKING:
    from cabm.checkpoints.model_directory import load_model
    from cabm.checkpoints.released import import_released
    from cabm.models.registry import build_model
    from cabm.tables.table import EdgeToBitTable
    from cabm.upscaling.size import OutputSize
    from cabm.upscaling.upscaler import Upscaler

__version__ = "0.1.0"
__all__ = ["EdgeToBitTable", "OutputSize", "Upscaler", "build_model", "import_released", "load_model"]

__getattr__ = imports_on_use(
    __name__,
    {
        "EdgeToBitTable": "cabm.tables.table",
        "OutputSize": "cabm.upscaling.size",
        "Upscaler": "cabm.upscaling.upscaler",
        "build_model": "cabm.models.registry",
        "import_released": "cabm.checkpoints.released",
        "load_model": "cabm.checkpoints.model_directory",
    },
)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
