"""A request to upscale images: what the commands parse and the jobs carry out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cabm.checkpoints.find import DEFAULT_MODEL
from cabm.errors import InputError
from cabm.imaging.formats import DEFAULT_QUALITY
from cabm.imaging.raster import Raster
from cabm.imaging.reader import FileRaster, open_raster
from cabm.imaging.source import ReadOptions
from cabm.imaging.writer import OutputSpec
from cabm.upscaling.size import AS_COMPUTED, OutputSize
from cabm.upscaling.upscaler import DEFAULT_ALPHA, DEFAULT_OVERLAP, Upscaler


@dataclass(frozen=True)
class UpscaleRequest:
    """What to upscale and how, on one machine or on a cluster.

    Attributes:
        inputs: files and folders; on a cluster one folder or URL.
        output: a folder, or a file for a single input; None: the folder of each input. On a cluster, a
            folder or URL.
        model: a model directory, or the name of a packaged model.
        scale: scale factor that the model must have; None: any.
        size: of the results.
        file_format: png, tiff, webp or jpeg; None: by the suffix of ``output``, otherwise png.
        quality: JPEG/WebP quality, 1..100; a WebP of 100 is lossless.
        overwrite: replace existing outputs instead of keeping them.
        max_pixels: limit on height x width of an input; None: the default of `cabm.imaging.reader`.
        to_srgb: convert colours by the embedded profile.
        strip: write no metadata but the mark of a result; colours become sRGB.
        damaged: upscale what is left of images that lost data.
        all_frames: upscale every page or frame of a file, not only the first.
        engine, device, threads, overlap, tile, alpha: see `Upscaler.load`.
    """

    inputs: tuple[str, ...] = ()
    output: str | None = None
    model: str | Path = DEFAULT_MODEL
    scale: int | None = None
    size: OutputSize = AS_COMPUTED
    file_format: str | None = None
    quality: int = DEFAULT_QUALITY
    overwrite: bool = False
    max_pixels: int | None = None
    to_srgb: bool = False
    strip: bool = False
    damaged: bool = False
    all_frames: bool = False
    engine: str = "auto"
    device: str = "auto"
    threads: int | None = None
    overlap: str | int = DEFAULT_OVERLAP
    tile: int | None = None
    alpha: str = DEFAULT_ALPHA

    @property
    def read_options(self) -> ReadOptions:
        """How to read the inputs. Without its profile, an image must be sRGB."""
        return ReadOptions(
            self.max_pixels,
            to_srgb=self.to_srgb or self.strip,
            damaged=self.damaged,
            limit_option="--max-pixels",
            damaged_option="--damaged",
            frames_option="--all-frames",
        )

    def open(self, upscaler: Upscaler, source: Path, file_format: str) -> tuple[FileRaster, OutputSpec]:
        """Open an image, and describe its result.

        Args:
            upscaler: the model.
            source: the image file.
            file_format: of the result.

        Raises:
            InputError: the image cannot be read, or the model does not reach the size.
        """
        raster = open_raster(source, options=self.read_options)
        return raster, self.output_spec(upscaler, source, raster, file_format)

    def output_spec(self, upscaler: Upscaler, source: Path, raster: Raster, file_format: str) -> OutputSpec:
        """Describe the result of an image from a file.

        Raises:
            InputError: the model does not reach the size.
        """
        try:
            return upscaler.output_spec(raster, file_format, self.quality, strip=self.strip, size=self.size)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def load(self) -> Upscaler:
        """Load the model.

        Raises:
            InputError: as `Upscaler.load`; or the model has another scale, or does not reach the size.
        """
        upscaler = Upscaler.load(
            self.model,
            engine=self.engine,
            device=self.device,
            threads=self.threads,
            overlap=self.overlap,
            tile=self.tile,
            alpha=self.alpha,
        )
        if self.scale not in (None, upscaler.scale):
            raise InputError(
                f"{upscaler.directory} upscales x{upscaler.scale}, not x{self.scale};"
                " name a model of that scale (--model)"
            )
        self.size.check(upscaler.scale)
        return upscaler
