"""Upscale images of any size with a trained model: `Upscaler`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cabm.checkpoints.find import DEFAULT_MODEL, find_model
from cabm.checkpoints.model_directory import LoadedModel, load_model
from cabm.errors import InputError, require
from cabm.imaging.metadata import Metadata
from cabm.imaging.raster import Raster, array_raster, image_array, in_memory
from cabm.imaging.writer import OutputSpec, RowWriter, image_writer
from cabm.machine.threads import torch_threads
from cabm.quant.functional import PAMS_BITS
from cabm.tables.cost import bitops, fab
from cabm.tiling.blending import MAX_FADE
from cabm.tiling.parts import TileParts
from cabm.tiling.plan import TilePlan, plan
from cabm.upscaling.engine_choice import ChosenRunner, choose_runner
from cabm.upscaling.streaming import upscale
from cabm.upscaling.trace import Progress, Trace

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


@dataclass(frozen=True)
class Report:
    """What upscaling one image took.

    Attributes:
        plan: its tiles.
        bits: (N,L) bits of each tile, zeros for tiles that bypassed the network; None for models without
            bits.
        fab: mean bits of the tiles that entered the network; None for models without bits.
        bypassed: share of the tiles' pixels that bypassed the network, 0..1.
        bitops_saved: share of the bit operations saved against the same network in float, 0..1.
        seconds: by phase: decode, score, look up, network, merge, encode (waiting for the encoder), total.
        engine: engine and device, such as ``int8 on cpu``.
        notes: conversions of the pixels that the user should know of.
        parts: which parts of the tiles bypassed the network; None for models without a table.
        scores: (N,) edge score of each tile; None for models without a table.
        tile_seconds: (N,) time of each tile; see `Trace`.
    """

    plan: TilePlan
    bits: np.ndarray | None
    fab: float | None
    bypassed: float
    bitops_saved: float
    seconds: dict[str, float]
    engine: str
    notes: tuple[str, ...] = ()
    parts: TileParts | None = None
    scores: np.ndarray | None = None
    tile_seconds: np.ndarray | None = None


class UnfinishedFile:
    """A file whose rows are all computed; the last ones are being encoded in another thread.

    Made by `Upscaler.start_file`. The file appears under its name in `finish`.
    """

    def __init__(self, rows: RowWriter, writing: ExitStack, trace: Trace, report: Report) -> None:
        self._rows, self._writing, self._trace, self._report = rows, writing, trace, report

    @property
    def encoded(self) -> bool:
        """Whether `finish` need not wait."""
        return self._rows.encoded

    def finish(self) -> Report:
        """Wait for the encoder, and give the file its name.

        Raises:
            InputError: the file cannot be written.
        """
        with self._trace.clock("total"), self._trace.clock("encode"):
            self._writing.close()
        return self._report


class Upscaler:
    """Upscales images with a trained model, tile by tile.

    Use `load` to make one. Call it with an array, or use `upscale_file` for files.

    Args:
        loaded: the model and its table.
        chosen: what runs the model.
        overlap: overlap of neighbouring tiles in input pixels. ``evaluated``: as in the model's evaluation
            and its table, usually 2 pixels. ``auto``: as much as the network sees, so that a float model
            gives the same image as without tiles, at two to three times the work.
        tile: side of a tile in input pixels; None: the table's, or as large as ``auto`` needs.
        threads: CPU threads; None: as many as PyTorch uses.
        alpha: what upscales alpha channels: ``network`` or ``bicubic``.

    Attributes:
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
        loaded: LoadedModel,
        chosen: ChosenRunner,
        *,
        overlap: str | int = DEFAULT_OVERLAP,
        tile: int | None = None,
        threads: int | None = None,
        alpha: str = DEFAULT_ALPHA,
    ) -> None:
        self.model, self.table = loaded.model, loaded.table
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
        loaded = load_model(find_model(model))
        if loaded.config.precision.kind == "cadyq":
            require(f"{loaded.directory}: the selectors of a cadyq model", "kornia")
        chosen = choose_runner(loaded.model, engine=engine, device=device)
        return cls(loaded, chosen, overlap=overlap, tile=tile, threads=threads, alpha=alpha)

    def __call__(self, image: ArrayLike, *, progress: Progress | None = None) -> np.ndarray:
        """Upscale an image in memory.

        Args:
            image: an image of Pillow, or an array: (H, W) or (H, W, C), uint8 in 0..255 or uint16 in
                0..65535. C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha (not premultiplied).
            progress: called with the number of tiles that were finished.

        Returns:
            (H * scale, W * scale[, C]) of the same type.

        Raises:
            InputError: the image has another shape or type of pixels.
            TypeError: it is no image.
        """
        image = image_array(image)
        raster = array_raster(image[..., None] if image.ndim == 2 else image)
        with torch_threads(self._threads):
            rows = list(self._rows(raster, self.plan(raster.height, raster.width), Trace(), progress))
        upscaled = np.concatenate(rows)
        return upscaled[..., 0] if image.ndim == 2 else upscaled

    def plan(self, height: int, width: int) -> TilePlan:
        """Return the tiles of an image of this size."""
        return plan(height, width, self.tile, self.stride, size_multiple=self.model.size_multiple)

    def output_spec(
        self, raster: Raster, file_format: str, quality: int, *, strip: bool = False
    ) -> OutputSpec:
        """Describe the output file for a raster; ``strip`` leaves its metadata out."""
        return OutputSpec(
            height=raster.height * self.scale,
            width=raster.width * self.scale,
            channels=raster.channels,
            bits=8 * raster.dtype.itemsize,
            format=file_format,
            quality=quality,
            metadata=Metadata() if strip else raster.metadata.scaled(self.scale),
            strip=strip,
        )

    def upscale_file(
        self, raster: Raster, path: Path, spec: OutputSpec, *, progress: Progress | None = None
    ) -> Report:
        """Upscale an image into a file. Memory does not grow with the image's height.

        Args:
            raster: the image, from `cabm.imaging.reader.open_raster`.
            path: the file to write or replace; it appears when it is complete.
            spec: from `output_spec`.
            progress: called with the number of tiles that were finished.

        Raises:
            InputError: the image is corrupt, or the file cannot be written.
        """
        return self.start_file(raster, path, spec, progress=progress).finish()

    def start_file(
        self, raster: Raster, path: Path, spec: OutputSpec, *, progress: Progress | None = None
    ) -> UnfinishedFile:
        """Upscale an image, and return while its last rows are still being encoded; see `upscale_file`."""
        trace = Trace()
        with ExitStack() as writing, torch_threads(self._threads), trace.clock("total"):
            if raster.height * raster.width * raster.channels * raster.dtype.itemsize <= _IN_MEMORY_BYTES:
                with trace.clock("decode"):
                    raster = in_memory(raster)
            tile_plan = self.plan(raster.height, raster.width)
            write = writing.enter_context(image_writer(path, spec))
            for rows in self._rows(raster, tile_plan, trace, progress):
                with trace.clock("encode"):
                    write(rows)
                del rows
            with trace.clock("encode"):
                write.end()
            report = self._report(tile_plan, trace, raster.all_notes + spec.notes)
            return UnfinishedFile(write, writing.pop_all(), trace, report)

    def _rows(
        self, raster: Raster, tile_plan: TilePlan, trace: Trace, progress: Progress | None
    ) -> Iterator[np.ndarray]:
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

    def _report(self, tile_plan: TilePlan, trace: Trace, notes: tuple[str, ...]) -> Report:
        bits = trace.bits
        kind, weight_bits = self.model.precision.kind, self.model.precision.weight_bits
        counted = np.full(self.model.num_adaptive, PAMS_BITS) if kind == "pams" else bits
        costs = {"convention": "tile", "weight_bits": weight_bits}
        parts = trace.parts
        bypassed = np.zeros(len(tile_plan)) if parts is None else parts.share
        work = np.ones(len(tile_plan)) if parts is None else parts.work
        used = bitops(self.model.layers, counted, tile_plan, **costs, computed=work)
        full = bitops(self.model.layers, None, tile_plan, **costs)
        return Report(
            plan=tile_plan,
            bits=bits,
            fab=None if counted is None else fab(counted),
            bypassed=float(bypassed.mean()),
            bitops_saved=1 - used / full,
            seconds=trace.seconds,
            engine=f"{self.engine} on {self._chosen.device}",
            notes=notes,
            parts=parts,
            scores=trace.scores,
            tile_seconds=trace.tile_seconds,
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
