"""What a page can do, without the page: check an image, upscale it, show it, describe a model."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from matplotlib.figure import Figure

from cabm.checkpoints.model_directory import load_model
from cabm.checkpoints.model_files import read_config
from cabm.errors import InputError
from cabm.files import atomic_write
from cabm.imaging.reader import FileRaster, open_raster
from cabm.imaging.source import ReadOptions
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.size import OutputSize
from cabm.upscaling.tasks import Task, result_name
from cabm.web import model_card
from cabm.web.jobs import Job, Upscaled
from cabm.web.models import Models
from cabm.web.pictures import Pictures, Shown, draw, draw_detail, under_bits
from cabm.web.visits import Visit, Visits


@dataclass(frozen=True)
class Limits:
    """What visitors may ask for.

    Attributes:
        max_pixels: largest width times height of an image; None: as `cabm upscale`.
        max_upload_mb: largest file in megabytes.
        max_waiting: jobs that wait for their turn; more are refused.
        threads: CPU threads of the one job that runs at a time; None: one per core.
    """

    max_pixels: int | None = None
    max_upload_mb: int = 1000
    max_waiting: int = 20
    threads: int | None = None


def output_size(kind: str, first: float | None, second: float | None, *, twice: bool) -> OutputSize:
    """Return the size that a page asks for.

    Args:
        kind: ``scale`` (of the model), ``factor``, ``max_side``, ``width``, ``height``, or ``both`` sides.
        first: the number; of ``both`` the width.
        second: the height of ``both``.
        twice: whether the model may run twice.

    Raises:
        InputError: a number is missing or out of range.
    """
    passes = 2 if twice else 1
    if kind == "scale":
        return OutputSize(passes=passes)
    if first is None or (kind == "both" and second is None):
        raise InputError("output size: give a number")
    if kind == "factor":
        return OutputSize(factor=first, passes=passes)
    sides = {"width": int(first), "height": int(second or 0)} if kind == "both" else {kind: int(first)}
    return OutputSize(**sides, passes=passes)


@dataclass
class Site:
    """Everything behind the page.

    Attributes:
        models: what visitors choose from.
        limits: what they may ask for.
        folder: for temporary files; the caller removes it.
    """

    models: Models
    limits: Limits
    folder: Path
    visits: Visits = field(init=False)
    _drawing: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.visits = Visits(self.folder / "jobs")

    def opened(self, path: Path) -> FileRaster:
        """Read the header of an uploaded image.

        Raises:
            InputError: it is no image that can be upscaled; the message names the file without its folder.
        """
        try:
            return open_raster(path, ReadOptions(self.limits.max_pixels))
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from None

    def start(self, visit: Visit, path: Path, request: UpscaleRequest) -> Job[Shown]:
        """Start to upscale an uploaded image.

        Args:
            visit: the page.
            path: the image.
            request: how to upscale it; its ``model`` is one of the names that the page offers, its inputs,
                output and limits do not count.

        Raises:
            InputError: the model is not offered.
        """
        name = str(request.model)
        ending = request.size.name(read_config(self.models.path(name)).scale)
        request = replace(
            request,
            model=self.models.path(name),
            overwrite=True,
            max_pixels=self.limits.max_pixels,
            threads=self.limits.threads,
        )
        folder = visit.new_folder(self.visits.root)
        task = Task(path, folder / result_name(path, ending, request.file_format, alone=True))

        def show(upscaled: Upscaled) -> Shown:
            pictures = draw(path, task.output, folder, request.read_options)
            return Shown(upscaled, pictures, under_bits(path, request.read_options))

        return visit.start(Job(task, request, lambda: self.models.upscaler(name, request), show))

    def detail(self, shown: Shown, tile: int) -> Pictures:
        """Return the pictures of a tile and its surroundings.

        Raises:
            InputError: the files are gone, or there is no such tile.
        """
        task, plans = shown.upscaled.task, shown.upscaled.report.plans
        if not task.source.exists() or not task.output.exists():
            raise InputError("these files have expired on the server; upscale the image again")
        if not plans or not 0 <= tile < len(plans[0]):
            raise InputError(f"tile {tile}: the image has {len(plans[0]) if plans else 0} tiles")
        options = UpscaleRequest(max_pixels=self.limits.max_pixels).read_options
        return draw_detail(task.source, task.output, task.output.parent, options, plans[0], tile)

    def describe(self, name: str) -> tuple[str, Path | None, Path | None]:
        """Describe a model: Markdown, and files with its table as a picture and PSNR against FAB.

        Raises:
            InputError: the model is not offered, or its files are damaged.
        """
        loaded = load_model(self.models.path(name))
        folder = self.folder / "models" / str(list(self.models.paths).index(name))
        with self._drawing:
            table = _saved(model_card.table_figure(loaded), folder / "table.png")
            trade_off = _saved(model_card.trade_off_figure(loaded), folder / "psnr_against_fab.png")
        return model_card.card(loaded, name), table, trade_off


def _saved(figure: Figure | None, path: Path) -> Path | None:
    if figure is None:
        return None
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return path
