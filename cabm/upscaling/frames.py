"""Upscale every picture of a file: the pages of a TIFF, or the frames of an animation."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cabm.files import temporary_prefix
from cabm.imaging.apng import join_frames
from cabm.imaging.frames import Frames, join_pages, pictures
from cabm.imaging.pixels import as_rgba
from cabm.imaging.raster import array_raster, in_memory
from cabm.imaging.reader import open_raster
from cabm.imaging.source import NO_LIMIT
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

    One picture is in memory at a time, besides a WebP animation, which its encoder assembles there.

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
        one = Task(task.source, Path(folder, "one.tif" if task.format == "tiff" else "one.png"))
        upscaled = _upscaled(upscaler, one, request, frames, reports, progress)
        if task.format == "tiff":
            join_pages(upscaled, task.output)
            notes = ("tiff cannot hold durations: left out",) if frames.animation is not None else ()
        elif task.format == "png":
            assert frames.animation is not None
            join_frames(upscaled, task.output, frames.animation)
        else:
            _, spec = request.open(upscaler, task.source, task.format)
            spec = replace(spec, channels=4, bits=8, animation=frames.animation, computed=None)
            notes = spec.notes
            with image_writer(task.output, spec) as write:
                for png in upscaled:
                    for rows in open_raster(png, NO_LIMIT).blocks():
                        write(rows)
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report.seconds)
    found = dict.fromkeys(note for report in reports for note in report.notes) | dict.fromkeys(notes)
    return replace(reports[0], seconds=dict(seconds), notes=(f"{len(reports)} pictures", *found))


def _upscaled(
    upscaler: Upscaler,
    one: Task,
    request: UpscaleRequest,
    frames: Frames,
    reports: list[Report],
    progress: Progress | None,
) -> Iterator[Path]:
    """Yield each upscaled picture as a file, which is replaced by the next; PNG files are RGB and alpha."""
    file_bytes = 0
    for raster in pictures(one.source, frames, request.read_options):
        if one.format == "png":
            raster = array_raster(as_rgba(in_memory(raster).array), raster.metadata, raster.notes)
        spec = request.output_spec(upscaler, one.source, raster, one.format)
        file_bytes = file_bytes or frames.number * spec.raw_bytes
        report = upscaler.upscale_file(
            raster, one.output, replace(spec, file_bytes=file_bytes), progress=progress
        )
        reports.append(report)
        yield one.output
