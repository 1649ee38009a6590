"""Read and check the files of a pipeline that a report shows."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from cabm.checkpoints.model_files import CONFIG_FILE, ModelConfig, read_config
from cabm.errors import InputError, describe
from cabm.evaluation.comparison import TRAINING_STAGES
from cabm.files import read_json
from cabm.project.params import Params, load_params
from cabm.project.paths import CURVES, METRICS, MODELS, RESULTS, TABLES, TIMING
from cabm.tables.table import EdgeToBitTable

STAGES = ("prepare", "full_precision", "pams", "cadyq", "edge_to_bit", "cabm", "evaluate")
FIGURES = ("bit_map", "crops", "edge_hypothesis", "edge_to_bit")
_PNG = b"\x89PNG\r\n\x1a\n"
# far larger than any figure of the evaluate stage; more would make a page that browsers cannot open
_MAX_IMAGE_BYTES = 16 * 2**20

Number = Annotated[float, Field(allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)
OptionalNumber = Annotated[Number | None, BeforeValidator(lambda value: None if value == "" else value)]


class Measured(BaseModel):
    """Means of one method on one test set; see `cabm.evaluation.comparison.summarise`.

    Results written by earlier versions call the bit operations of tiles ``bitops_patch_T``.
    """

    psnr: Number
    ssim: Number
    seconds: Number
    fab: Number | None = None
    bypassed: Number | None = None
    bitops_tile_T: Annotated[
        Number | None, Field(validation_alias=AliasChoices("bitops_tile_T", "bitops_patch_T"))
    ] = None
    bitops_image_T: Number | None = None


class Quality(BaseModel):
    """The file results/quality.json: means by protocol, test set and method."""

    protocol: dict[str, str | int | float] = {}
    environment: dict[str, str] = {}
    results: dict[str, dict[str, dict[str, Measured]]]


class ImageRow(BaseModel):
    """One row of results/images.csv."""

    protocol: str
    set: str
    method: str
    image: str
    psnr: Number
    ssim: Number
    fab: OptionalNumber = None
    bypassed: Number
    tiles: int
    seconds: Number


class CropVersion(BaseModel):
    """One version of a crop."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+\.png$")]
    psnr: Number | None


class Crop(BaseModel):
    """One crop of the image: its place, and its versions by caption."""

    box: tuple[int, int, int, int]
    versions: dict[str, CropVersion]


class Crops(BaseModel):
    """The file results/crops/crops.json; see `cabm.reporting.pictures.save_crops`."""

    image: str
    crops: list[Crop]


class Validation(BaseModel):
    """Means over the validation images after training."""

    psnr: Number
    ssim: Number
    fab: Number | None = None


class Timing(BaseModel):
    """The file timing/STAGE.json."""

    seconds: Number | None = None
    patches_per_second: Number | None = None
    tiles_per_second: Number | None = None


class StageMetrics(BaseModel):
    """The file metrics/STAGE.json of a stage whose metrics the report does not show."""


class TrainingMetrics(StageMetrics):
    """The file metrics/STAGE.json of a training stage."""

    validation: Validation


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows. Parts that no stage has written yet are None or empty.

    Attributes:
        quality: means by protocol, test set and method.
        images: results of each image.
        metrics: by stage.
        timing: by stage.
        curves: rows of numbers by training stage; values that were not measured in a row are absent.
        models: configs by training stage.
        table: the edge-to-bit table.
        params: the content of params.yaml.
        figures: figures of the evaluate stage as data URIs, by name.
        crops: the crops of the shown image.
        crop_images: data URIs of the crops, by file name.
    """

    quality: Quality | None = None
    images: list[ImageRow] = field(default_factory=list)
    metrics: Mapping[str, StageMetrics] = field(default_factory=dict)
    timing: Mapping[str, Timing] = field(default_factory=dict)
    curves: Mapping[str, list[dict[str, float]]] = field(default_factory=dict)
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    table: EdgeToBitTable | None = None
    params: Params | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    crops: Crops | None = None
    crop_images: Mapping[str, str] = field(default_factory=dict)


def read_report_data(project: str | Path = ".") -> ReportData:
    """Read what the stages of a pipeline have written so far.

    Args:
        project: the directory with params.yaml.

    Raises:
        InputError: there is no such directory, no stage has written anything yet, or a file is damaged.
    """
    project = Path(project)
    if not project.is_dir():
        raise InputError(f"{project}: no such directory; name the one with params.yaml")
    metrics = {name: project / METRICS / f"{name}.json" for name in STAGES}
    timing = {name: project / TIMING / f"{name}.json" for name in STAGES}
    curves = {name: project / CURVES / f"{name}.csv" for name in TRAINING_STAGES}
    models = {name: project / MODELS / name for name in TRAINING_STAGES}
    results = project / RESULTS
    figures = {name: results / "figures" / f"{name}.png" for name in FIGURES}
    crops = _read_if_there(results / "crops" / "crops.json", Crops)
    versions = [v for crop in crops.crops for v in crop.versions.values()] if crops else []
    table = project / TABLES / "edge_to_bit.json"
    params = project / "params.yaml"
    data = ReportData(
        quality=_read_if_there(results / "quality.json", Quality),
        images=_read_images(results / "images.csv"),
        metrics={name: _read_metrics(name, path) for name, path in _existing(metrics)},
        timing={name: _validated(path, Timing, read_json(path)) for name, path in _existing(timing)},
        curves={n: _read_curve(path) for n, path in _existing(curves)},
        models={n: read_config(path) for n, path in models.items() if (path / CONFIG_FILE).exists()},
        table=EdgeToBitTable.load(table) if table.exists() else None,
        params=load_params(params) if params.exists() else None,
        figures={name: image_uri(path) for name, path in _existing(figures)},
        crops=crops,
        crop_images={v.file: image_uri(results / "crops" / v.file) for v in versions},
    )
    if not (data.quality or data.metrics or data.timing or data.curves or data.models or data.table):
        raise InputError(f"{project}: nothing to report, no stage has run here; run dvc repro first")
    return data


def image_uri(path: Path) -> str:
    """Return a PNG file as a data URI.

    Raises:
        InputError: it is missing, another kind of file, or too large for a page.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such image; run the evaluate stage again")
    content = path.read_bytes()
    if len(content) > _MAX_IMAGE_BYTES:
        raise InputError(f"{path}: an image of {len(content) / 2**20:.0f} MiB is too large for a page")
    if not content.startswith(_PNG):
        raise InputError(f"{path}: not a PNG image; run the evaluate stage again")
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def _existing(files: Mapping[str, Path]) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in files.items() if path.exists()]


def _read_if_there(path: Path, model: type[Model]) -> Model | None:
    return _validated(path, model, read_json(path)) if path.exists() else None


def _validated(path: Path, model: type[Model], content: Any) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error)}; run its stage again") from None


def _read_metrics(stage: str, path: Path) -> StageMetrics:
    return _validated(path, TrainingMetrics if stage in TRAINING_STAGES else StageMetrics, read_json(path))


def _read_images(path: Path) -> list[ImageRow]:
    if not path.exists():
        return []
    rows = TypeAdapter(list[ImageRow])
    try:
        return rows.validate_python(_read_csv(path))
    except ValidationError as error:
        raise InputError(f"{path}: row {describe(error)}; run the evaluate stage again") from None


def _read_curve(path: Path) -> list[dict[str, float]]:
    rows = []
    for number, row in enumerate(_read_csv(path), start=2):
        try:
            rows.append({name: float(text) for name, text in row.items() if text})
        except (TypeError, ValueError):
            raise InputError(f"{path}: line {number} does not hold numbers only") from None
        if "step" not in rows[-1]:
            raise InputError(f"{path}: line {number} has no step")
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file ({error})") from None
