"""What the page shows of a model: its card, its table as a picture, PSNR against FAB."""

from __future__ import annotations

from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from pydantic import BaseModel, ValidationError

from cabm.checkpoints.describe import model_facts, model_lines
from cabm.checkpoints.model_directory import LoadedModel
from cabm.errors import InputError, describe
from cabm.files import read_json
from cabm.project.params import flatten
from cabm.project.paths import MODELS, RESULTS
from cabm.reporting.bits import psnr_against_fab, table_picture, trade_off_rows

CARD, QUALITY = "MODEL_CARD.md", "quality.json"


class _Point(BaseModel):
    psnr: float
    fab: float | None = None


class _Quality(BaseModel):
    """The part of a quality.json that the figure needs: results by protocol, test set and method."""

    results: dict[str, dict[str, dict[str, _Point]]]


def card(loaded: LoadedModel, name: str) -> str:
    """Return the description of a model as Markdown: its facts, and its card where it has one."""
    lines = model_lines(model_facts(loaded)) | {"model": name}
    if loaded.table is not None:
        table = loaded.table
        lines["tiles"] = f"{table.tile} x {table.tile}, stride {table.stride}"
        rows = f"{len(table.rows)} rows by edge score" if len(table.rows) > 1 else "1 row for all tiles"
        lines["table"] = f"{rows}, strategy {table.strategy}"
        if table.contrast_limit is not None:
            lines["contrast limit"] = f"{table.contrast_limit:g} levels"
    path = loaded.directory.parent / CARD
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        lines |= {key: str(value) for key, value in flatten(loaded.config.provenance).items()}
        text = ""
    rows = "\n".join(f"| {title} | {_cell(value)} |" for title, value in lines.items())
    return f"| | |\n|---|---|\n{rows}\n\n{text}"


def table_figure(loaded: LoadedModel) -> Figure | None:
    """Return the table of a model as a picture; None if it has none."""
    return None if loaded.table is None else table_picture(loaded.table)


def trade_off_figure(loaded: LoadedModel) -> Figure | None:
    """Return PSNR against FAB of a model's evaluation; None if it was not evaluated.

    Raises:
        InputError: the file with the results is damaged.
    """
    path = quality_file(loaded.directory)
    if path is None:
        return None
    try:
        quality = _Quality.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error)}; run the evaluate stage again") from None
    sets = quality.results.get("tiles", {})
    rows = [
        row
        for name, methods in sets.items()
        for row in trade_off_rows(name, {method: point.model_dump() for method, point in methods.items()})
    ]
    return psnr_against_fab(rows) if rows else None


def quality_file(directory: Path) -> Path | None:
    """Return the results of the evaluation that belongs to a model directory.

    A packaged model has them beside its card, a pipeline in its folder of results.
    """
    places = [directory.parent / QUALITY]
    if directory.parent.name == MODELS.name:
        places.append(directory.resolve().parent.parent / RESULTS / QUALITY)
    return next((place for place in places if place.is_file()), None)


def _cell(text: str) -> str:
    return escape(" ".join(text.split())).replace("|", "&#124;")
