"""Upscale every picture of a file: the pages of a TIFF, or the frames of an animation."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cabm.files import temporary_prefix
from cabm.imaging.frames import Frames, join_pages
from cabm.imaging.metadata import Metadata
from cabm.imaging.pixels import as_rgba
from cabm.imaging.reader import open_raster
from cabm.imaging.writer import image_writer
from cabm.upscaling.report import Report
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.tasks import Task
from cabm.upscaling.trace import Progress
from cabm.upscaling.upscaler import Upscaler


def upscale_frames(
    upscaler: Upscaler,
    task: Task,
    request: UpscaleRequest,
    frames: Frames,
    *,
    progress: Progress | None = None,
) -> Report:
    """Upscale the pictures of a file one after another, into one file.

    One picture is in memory at a time, besides what the encoder of an animation holds.

    Args:
        upscaler: the model.
        task: the file.
        request: how to upscale.
        frames: the pictures of the file.
        progress: called with the number of tiles that were finished.

    Returns:
        The report on the first picture, with the seconds and notes of all.

    Raises:
        InputError: a picture cannot be read, or the format cannot hold them.
    """
    frames.check_output(task.output, task.format)
    reports: list[Report] = []
    notes: tuple[str, ...] = ()
    task.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=temporary_prefix(task.output.name), dir=task.output.parent
    ) as folder:
        one = Task(task.source, Path(folder, f"frame{task.output.suffix}"))
        if task.format == "tiff":
            join_pages(_pages(upscaler, one, request, frames, reports, progress), task.output)
        else:
            notes = _animate(upscaler, one, task.output, request, frames, reports, progress)
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report.seconds)
    found = dict.fromkeys(note for report in reports for note in report.notes) | dict.fromkeys(notes)
    return replace(reports[0], seconds=dict(seconds), notes=(f"{len(reports)} pictures", *found))


def _pages(
    upscaler: Upscaler,
    one: Task,
    request: UpscaleRequest,
    frames: Frames,
    reports: list[Report],
    progress: Progress | None,
) -> Iterator[Path]:
    """Yield each upscaled page as a TIFF file, which is replaced by the next."""
    file_bytes = 0
    for number in range(frames.number):
        raster, spec = request.open(upscaler, one.source, "tiff", number)
        file_bytes = file_bytes or frames.number * spec.raw_bytes
        spec = replace(spec, file_bytes=file_bytes)
        reports.append(upscaler.upscale_file(raster, one.output, spec, progress=progress))
        yield one.output


def _animate(
    upscaler: Upscaler,
    one: Task,
    output: Path,
    request: UpscaleRequest,
    frames: Frames,
    reports: list[Report],
    progress: Progress | None,
) -> tuple[str, ...]:
    """Write an animation, for which each frame is upscaled into a file first; return notes about it."""
    frame = one.output.with_suffix(".png")
    _, spec = request.open(upscaler, one.source, "webp", 0)
    # the frames that are read for it have its size
    spec = replace(spec, channels=4, bits=8, animation=frames.animation, computed=None)
    with image_writer(output, spec) as write:
        for number in range(frames.number):
            raster, lossless = request.open(upscaler, one.source, "png", number)
            lossless = replace(lossless, metadata=Metadata())
            reports.append(upscaler.upscale_file(raster, frame, lossless, progress=progress))
            for rows in open_raster(frame, max_pixels=1 << 62).blocks():
                write(as_rgba(rows))
    return spec.notes
