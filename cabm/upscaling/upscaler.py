"""Upscale images of any size with a trained model: `Upscaler`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cabm.checkpoints.find import DEFAULT_MODEL, find_model
from cabm.errors import InputError
from cabm.imaging.metadata import Metadata
from cabm.imaging.pillow_files import image_array
from cabm.imaging.raster import Raster, array_raster, in_memory
from cabm.imaging.row_stream import RowShape, reduced_rows
from cabm.imaging.stored import stored_rows
from cabm.imaging.writer import OutputSpec, image_writer
from cabm.machine.threads import limited_threads
from cabm.tiling.blending import MAX_FADE
from cabm.tiling.plan import TilePlan, plan
from cabm.upscaling.loading import RunnableModel, load
from cabm.upscaling.report import Report, report_on
from cabm.upscaling.size import AS_COMPUTED, MAX_PASSES, OutputSize, Target
from cabm.upscaling.streaming import upscale
from cabm.upscaling.trace import Progress, Trace
from cabm.upscaling.unfinished import UnfinishedFile

TILE, STRIDE = 96, 94
"""Tiles of models without a table, in input pixels. Other models have the tiles of their table."""

DEFAULT_OVERLAP = 6
"""Overlap of neighbouring tiles in input pixels.

Measured with a trained EDSR x4 on Urban100, against images computed whole: an overlap of 2 pixels, as in
evaluation, leaves seams of up to 39 levels. 6 pixels leave at most 8 levels, for 9 % more work.
"""

DEFAULT_ALPHA = "network"
"""What upscales alpha channels.

Measured with the shipped EDSR x4 on ten drawn shapes and four cut-outs of Set14: over bicubic the network
gains 5 to 9 dB of PSNR of the alpha channel on crisp shapes, 0.5 dB on tiny text and 2 to 4 dB on cut-outs,
and loses 4 of 57 dB on a soft shadow. The CPU time of the cut-outs rises by up to 60 %, that of shapes in
one colour, which need no network otherwise, three- to sixfold.
"""

_IN_MEMORY_BYTES = 64 << 20  # smaller images are decoded once instead of twice
_AUTO_TILE_MULTIPLE = 16


class Upscaler:
    """Upscales images with a trained model, tile by tile.

    Use `load` to make one. Call it with an array, or use `upscale_file` for files. Both take an
    `OutputSize`.

    Args:
        loaded: the model, its table, and what runs it.
        overlap: overlap of neighbouring tiles in input pixels. ``evaluated``: as in the model's evaluation
            and its table, usually 2 pixels. ``auto``: as much as the network sees, so that a float model
            gives the same image as without tiles, at two to three times the work.
        tile: side of a tile in input pixels; None: the table's, or as large as ``auto`` needs.
        threads: CPU threads; None: `cabm.machine.threads.thread_count`.
        alpha: what upscales alpha channels: ``network`` or ``bicubic``.

    Attributes:
        model: what the model states about itself.
        table: its edge-to-bit table; None unless the kind is cabm.
        config, directory: its config.json, and where it comes from.
        scale: scale factor.
        engine: ``int8`` or ``float``.
        engine_reason: why ``auto`` did not choose the integer engine; otherwise empty.
        tile: side of the tiles in input pixels.
        stride: distance of the tiles in input pixels.

    Raises:
        InputError: the tile does not fit the overlap or the network.
    """

    def __init__(
        self,
        loaded: RunnableModel,
        *,
        overlap: str | int = DEFAULT_OVERLAP,
        tile: int | None = None,
        threads: int | None = None,
        alpha: str = DEFAULT_ALPHA,
    ) -> None:
        self.model, self.table, chosen = loaded.facts, loaded.table, loaded.chosen
        self.config, self.directory = loaded.config, loaded.directory
        self.scale = self.model.scale
        self.engine, self.engine_reason = chosen.engine, chosen.reason
        self._chosen = chosen
        self._threads, self._alpha = threads, alpha
        self.tile, self.stride = self._tiles(overlap, tile)

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        engine: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        overlap: str | int = DEFAULT_OVERLAP,
        tile: int | None = None,
        alpha: str = DEFAULT_ALPHA,
    ) -> Upscaler:
        """Load a model.

        Args:
            model: a model directory, or the name of a packaged model.
            engine: ``int8`` (integer arithmetic), ``float`` (simulation), or ``auto``: integers if the
                machine and the model allow it.
            device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.
            threads, overlap, tile, alpha: see the class.

        Raises:
            InputError: no such model, damaged files, a table of another model, or an invalid option.
        """
        if threads is not None and threads < 1:
            raise InputError(f"{threads} threads: give at least 1")
        loaded = load(find_model(model), engine=engine, device=device)
        return cls(loaded, overlap=overlap, tile=tile, threads=threads, alpha=alpha)

    def __call__(
        self, image: ArrayLike, *, size: OutputSize = AS_COMPUTED, progress: Progress | None = None
    ) -> np.ndarray:
        """Upscale an image in memory.

        Args:
            image: an image of Pillow, or an array: (H, W) or (H, W, C), uint8 in 0..255 or uint16 in
                0..65535. C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha (not premultiplied).
            size: of the result, such as ``OutputSize(factor=2.5)``.
            progress: called with the number of tiles that were finished.

        Returns:
            (H * scale, W * scale[, C]) of the same type, or of the size that was asked for.

        Raises:
            InputError: the image has another shape or type of pixels, or the model does not reach the size.
            TypeError: it is no image.
        """
        image = image_array(image)
        raster: Raster = array_raster(image[..., None] if image.ndim == 2 else image)
        target = size.target(raster.height, raster.width, self.scale)
        with limited_threads(self._threads):
            for _ in range(target.passes - 1):
                raster = array_raster(np.concatenate(list(self._rows(raster, Trace(), progress))))
            rows = self._rows(raster, Trace(), progress) if target.passes else raster.blocks()
            shape = RowShape(*target.computed, raster.channels, 8 * raster.dtype.itemsize)
            upscaled = reduced_rows(rows, shape, target.height, target.width)
        return upscaled[..., 0] if image.ndim == 2 else upscaled

    def plan(self, height: int, width: int) -> TilePlan:
        """Return the tiles of an image of this size."""
        return plan(height, width, self.tile, self.stride, size_multiple=self.model.size_multiple)

    def plans(self, height: int, width: int, size: OutputSize = AS_COMPUTED) -> list[TilePlan]:
        """Return the tiles of each pass of the model over an image; none if the model does not run.

        Raises:
            InputError: the model does not reach the size.
        """
        return self._plans(height, width, size.target(height, width, self.scale).passes)

    def output_spec(
        self,
        raster: Raster,
        file_format: str,
        quality: int,
        *,
        strip: bool = False,
        size: OutputSize = AS_COMPUTED,
    ) -> OutputSpec:
        """Describe the output file for a raster.

        Args:
            raster: the image.
            file_format, quality: see `OutputSpec`.
            strip: leave its metadata out.
            size: of the result.

        Raises:
            InputError: the model does not reach the size.
        """
        target = size.target(raster.height, raster.width, self.scale)
        scales = target.width / raster.width, target.height / raster.height
        return OutputSpec(
            height=target.height,
            width=target.width,
            channels=raster.channels,
            bits=8 * raster.dtype.itemsize,
            format=file_format,
            quality=quality,
            metadata=Metadata() if strip else raster.metadata.scaled(*scales),
            strip=strip,
            computed=target.computed,
        )

    def upscale_file(
        self, raster: Raster, path: Path, spec: OutputSpec, *, progress: Progress | None = None
    ) -> Report:
        """Upscale an image into a file. Memory does not grow with the image's height.

        Args:
            raster: the image, from `cabm.imaging.reader.open_raster`.
            path: the file to write or replace; it appears when it is complete.
            spec: from `output_spec`, which chooses the size.
            progress: called with the number of tiles that were finished.

        Raises:
            InputError: the image is corrupt, or the file cannot be written.
        """
        return self.start_file(raster, path, spec, progress=progress).finish()

    def start_file(
        self, raster: Raster, path: Path, spec: OutputSpec, *, progress: Progress | None = None
    ) -> UnfinishedFile:
        """Upscale an image, and return while its last rows are still being encoded; see `upscale_file`."""
        heights = [raster.height * self.scale**number for number in range(MAX_PASSES + 1)]
        passes = heights.index(spec.rows_size[0])
        target, clock = Target(spec.height, spec.width, passes, spec.rows_size), Trace()
        plans = self._plans(raster.height, raster.width, passes)
        traces = [Trace(seconds=clock.seconds) for _ in plans]
        with (
            ExitStack() as writing,
            ExitStack() as first_pass,
            limited_threads(self._threads),
            clock.clock("total"),
        ):
            if raster.height * raster.width * raster.channels * raster.dtype.itemsize <= _IN_MEMORY_BYTES:
                with clock.clock("decode"):
                    raster = in_memory(raster)
            source: Raster = raster
            for trace in traces[:-1]:
                source = first_pass.enter_context(stored_rows(self._rows(source, trace, progress), path))
            write = writing.enter_context(image_writer(path, spec))
            for rows in self._rows(source, traces[-1], progress) if passes else source.blocks():
                with clock.clock("encode"):
                    write(rows)
                del rows
            with clock.clock("encode"):
                write.end()
            report = report_on(
                self.model,
                target,
                plans,
                traces,
                seconds=clock.seconds,
                engine=f"{self.engine} on {self._chosen.device}",
                notes=raster.all_notes + spec.notes + target.notes,
            )
            return UnfinishedFile(write, writing.pop_all(), clock, report)

    def _plans(self, height: int, width: int, passes: int) -> list[TilePlan]:
        return [
            self.plan(height * self.scale**number, width * self.scale**number) for number in range(passes)
        ]

    def _rows(self, raster: Raster, trace: Trace, progress: Progress | None) -> Iterator[np.ndarray]:
        tile_plan = self.plan(raster.height, raster.width)
        return upscale(
            raster,
            self._chosen.runner,
            tile_plan,
            table=self.table,
            alpha=self._alpha,
            batch_size=self._chosen.batch_size(tile_plan.tile_height * tile_plan.tile_width),
            progress=progress,
            trace=trace,
        )

    def _tiles(self, overlap: str | int, tile: int | None) -> tuple[int, int]:
        """Return side and stride of the tiles."""
        multiple = self.model.size_multiple
        default, stride = (TILE, STRIDE) if self.table is None else (self.table.tile, self.table.stride)
        if overlap == "evaluated":
            pixels = default - stride
        elif overlap == "auto":
            # the fade is in the middle of the overlap, with as much as the network sees on both sides
            pixels = 2 * self.model.receptive_field + MAX_FADE
            default = max(default, -(-5 * pixels // 2 // _AUTO_TILE_MULTIPLE) * _AUTO_TILE_MULTIPLE)
        elif isinstance(overlap, int) and overlap >= 0:
            pixels = overlap
        else:
            raise InputError(f"overlap {overlap!r}: give a number of pixels, auto or evaluated")
        tile = default + -default % multiple if tile is None else tile
        if tile % multiple or tile <= pixels:
            raise InputError(
                f"tiles of {tile} pixels that overlap by {pixels}: give a --tile that is larger than the"
                f" overlap{f' and a multiple of {multiple}' if multiple > 1 else ''}"
            )
        return tile, tile - pixels
