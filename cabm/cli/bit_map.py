"""`cabm upscale --bit-map`: draw the bits of an image's tiles over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cabm.cli.outputs import check_figure_name, check_new_file, save_figure
from cabm.errors import PLOTS, InputError, require

if TYPE_CHECKING:
    from cabm.imaging.source import ReadOptions
    from cabm.upscaling.jobs import Survey
    from cabm.upscaling.report import Report
    from cabm.upscaling.tasks import Task
    from cabm.upscaling.upscaler import Upscaler

_SHOWN_SIDE = 1600  # pixels of the image under the bits


def check_bit_map(
    path: Path, upscaler: Upscaler, tasks: Sequence[Task], found: Survey, *, overwrite: bool
) -> None:
    """Check that there is a bit map to draw, and where, before anything is computed.

    Raises:
        InputError: several inputs, an input whose result is kept or needs no network, a model without bits
            per tile, a file name of no figure format, or a file that must not be replaced.
    """
    require(f"--bit-map {path}", *PLOTS)
    if len(tasks) != 1:
        raise InputError(f"--bit-map {path}: draws one image, {len(tasks)} were given")
    kind = upscaler.model.precision.kind
    if kind not in ("cadyq", "cabm"):
        raise InputError(f"--bit-map {path}: a {kind} model has no bits that differ from tile to tile")
    check_figure_name(path)
    check_new_file(path, (tasks[0].source, tasks[0].output), overwrite=overwrite)
    if found.kept:
        raise InputError(
            f"--bit-map {path}: not drawn, because {tasks[0].output} exists and is kept; add --overwrite"
        )
    if any(num_tiles == 0 for _, num_tiles in found.todo):
        raise InputError(f"--bit-map {path}: a result that is not larger than its image has no tiles")


def draw_bit_map(task: Task, report: Report, path: Path, options: ReadOptions) -> None:
    """Draw the bits of an image's tiles over it, which is read with these options."""
    from cabm.imaging.preview import thumbnail
    from cabm.reporting.overlays import bit_map_overlay

    assert report.bits is not None
    shown = thumbnail(task.source, _SHOWN_SIDE, options=options)
    save_figure(bit_map_overlay(shown, report.plan, report.bits.mean(axis=1), report.parts), path)
