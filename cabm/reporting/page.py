"""The report: one self-contained HTML page about the results of a pipeline."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from cabm.evaluation.comparison import TRAINING_STAGES
from cabm.files import atomic_write
from cabm.reporting.bits import psnr_against_fab, trade_off_rows
from cabm.reporting.curves import training_curves
from cabm.reporting.inputs import STAGES, Measured, ReportData, TrainingMetrics, read_report_data
from cabm.reporting.tables import (
    MISSING,
    decimal,
    image_table,
    label,
    model_rows,
    param_sections,
    percent,
    result_groups,
    stage_rows,
)
from cabm.tables.bypass import Bypass
from cabm.tables.table import EdgeToBitTable

PROTOCOLS = {"tiles": "In tiles", "whole": "Whole images"}


def write_report(project: str | Path, output: str | Path) -> Path:
    """Write the report of a project.

    Args:
        project: the directory with params.yaml.
        output: an .html file, or a folder for ``report.html``.

    Returns:
        The path of the page.

    Raises:
        InputError: there is nothing to report, or a file is damaged.
    """
    page = render_report(read_report_data(project))
    path = report_path(output)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def report_path(output: str | Path) -> Path:
    """Return the path of the page: ``output`` itself if it is named as a page, else one in that folder."""
    output = Path(output)
    return output if output.suffix.lower() in (".html", ".htm") else output / "report.html"


def render_report(data: ReportData) -> str:
    """Return the page as HTML. Equal data gives equal text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cabm.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    results = {} if data.quality is None else data.quality.results
    table_facts = None if data.table is None else table_description(data.table)
    return environment.get_template("report.html").render(
        title=model_title(data),
        headline=headline(data),
        figures_of_merit=key_numbers(data),
        protocols=[
            {
                "title": PROTOCOLS.get(name, name),
                "name": name,
                "groups": result_groups(sets),
            }
            for name, sets in results.items()
        ],
        trade_off=trade_off_figures(results.get("tiles", {})),
        table=table_facts,
        figures=data.figures,
        crops=data.crops,
        crop_images=data.crop_images,
        curves=[
            {"title": label(name), "figure": svg_uri(figure)}
            for name in data.curves
            if (figure := training_curves(whole_curve(data, name))) is not None
        ],
        stages=stage_rows(data),
        image_table=image_table(data.images),
        protocol={} if data.quality is None else data.quality.protocol,
        environment={} if data.quality is None else data.quality.environment,
        params=param_sections(data.params),
        models=model_rows(data.models),
        not_run=[name for name in STAGES if name not in data.metrics],
        label=label,
        decimal=decimal,
        style=_asset(environment, "report.css"),
        script=_asset(environment, "report.js"),
    )


def _asset(environment: jinja2.Environment, name: str) -> Markup:
    """Return a template file as it is, for a style or script element."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def model_title(data: ReportData) -> str:
    """Return the backbone and scale, such as ``EDSR ×4``."""
    for config in reversed(list(data.models.values())):
        return f"{config.backbone.upper()} ×{config.scale}"
    if data.table is not None:
        return f"{data.table.backbone.upper()} ×{data.table.scale}"
    if data.params is not None:
        return f"{data.params.model.name.upper()} ×{data.params.model.scale}"
    return "super-resolution"


def headline(data: ReportData) -> str:
    """Summarise the result in one sentence."""
    name, rows = headline_set(data)
    if name is None:
        done = [label(name) for name in TRAINING_STAGES if name in data.metrics or name in data.models]
        return f"Not evaluated yet. Trained so far: {', '.join(done) or 'nothing'}."
    cabm = rows.get("cabm")
    if cabm is None:
        return f"{model_title(data)} on {name}: evaluated without a CABM model."
    if cabm.fab is None:
        return _unbroken(f"{name}: CABM bypasses every tile and reaches {cabm.psnr:.2f} dB, all bicubic.")
    text = f"{model_title(data)} on {name} reaches {cabm.psnr:.2f} dB at {cabm.fab:.2f} bits on average"
    comparisons = [
        f"{compared(cabm.psnr - rows[other].psnr)} {words}"
        for other, words in (("full_precision", "float"), ("pams", "PAMS (8 bits)"))
        if other in rows
    ]
    if comparisons:
        text += f": {' and '.join(comparisons)}"
    share = _share_of_bitops(rows, "cabm", "pams")
    if share is not None:
        text += f", with {percent(share)} of the bit operations of PAMS"
    return _unbroken(text + ".")


def _unbroken(text: str) -> str:
    """Join numbers and units with spaces that do not break."""
    return re.sub(r"(?<=\d) (?=dB|bits|%)|(?<=\w) (?=×)", "\u00a0", text)


def compared(difference: float) -> str:
    """Return a difference of PSNR in words, to be followed by the name of the other method."""
    if abs(difference) < 0.005:
        return "equal to"
    return f"{abs(difference):.2f} dB {'above' if difference > 0 else 'below'}"


def headline_set(data: ReportData) -> tuple[str | None, Mapping[str, Measured]]:
    """Return the name and the rows by method of the last test set; None if nothing was evaluated."""
    tiles = {} if data.quality is None else data.quality.results.get("tiles", {})
    for name in reversed(tiles):
        return name, tiles[name]
    return None, {}


def key_numbers(data: ReportData) -> list[dict[str, str]]:
    """Return the numbers of CABM on the last test set, each with those of other methods."""
    _, rows = headline_set(data)
    cabm = rows.get("cabm")
    if cabm is None:
        return []
    share = _share_of_bitops(rows, "cabm", "full_precision")
    cadyq = rows.get("cadyq")
    return [
        {
            "value": decimal(cabm.psnr, 2),
            "unit": "dB PSNR",
            "note": _beside({name: decimal(row.psnr, 2) for name, row in rows.items()}),
        },
        {
            "value": decimal(cabm.ssim, 3),
            "unit": "SSIM",
            "note": _beside({name: decimal(row.ssim, 3) for name, row in rows.items()}),
        },
        {
            "value": decimal(cabm.fab, 2),
            "unit": "bits (FAB)",
            "note": f"CADyQ {decimal(cadyq.fab, 2)}, PAMS 8" if cadyq else "",
        },
        {
            "value": MISSING if cabm.bypassed is None else percent(cabm.bypassed),
            "unit": "bypassed",
            "note": "pixels that stay bicubic",
        },
        {
            "value": MISSING if share is None else percent(share),
            "unit": "of the float BitOPs",
            "note": f"{decimal(cabm.bitops_image_T, 3, significant=True)} T per image",
        },
    ]


def _beside(values: Mapping[str, str]) -> str:
    """Return the values of bicubic and float, to compare with."""
    shown = ("bicubic", "full_precision")
    return ", ".join(f"{label(name)} {values[name]}" for name in shown if name in values)


def _share_of_bitops(rows: Mapping[str, Measured], method: str, other: str) -> float | None:
    """Return the ratio of two methods' bit operations, without the overlaps of tiles."""
    pair = [rows[name].bitops_image_T if name in rows else None for name in (method, other)]
    return pair[0] / pair[1] if pair[0] is not None and pair[1] else None


def trade_off_figures(sets: Mapping[str, Mapping[str, Measured]]) -> list[dict[str, str]]:
    """Return PSNR against FAB for each test set, as a data URI."""
    found = []
    for name, methods in sets.items():
        rows = trade_off_rows(name, {method: row.model_dump() for method, row in methods.items()})
        if rows:
            found.append({"set": name, "figure": svg_uri(psnr_against_fab(rows))})
    return found


def whole_curve(data: ReportData, stage: str) -> list[dict[str, float]]:
    """Return the rows of a training curve; the last one gets the validation of the final model."""
    rows, metrics = data.curves[stage], data.metrics.get(stage)
    if not rows or not isinstance(metrics, TrainingMetrics):
        return rows
    return [*rows[:-1], {"validation_psnr": metrics.validation.psnr} | rows[-1]]


def table_description(table: EdgeToBitTable) -> dict[str, str]:
    """Return the facts that the report states about the edge-to-bit table."""
    fab = table.rows.mean(axis=1)
    return {
        "rows": f"{len(table.rows)}, strategy “{table.strategy}”",
        "layers": f"{len(table.layers)} adaptive, bits from {', '.join(map(str, table.search_space))}",
        "mean bits": f"{fab.min():.2f} to {fab.max():.2f}, depending on the score",
        "tiles": f"{table.tile} pixels, stride {table.stride}",
        "bypass": "none" if table.bypass is None else _bypass_description(table.bypass),
        "contrast limit": "none" if table.contrast_limit is None else f"{table.contrast_limit:g} levels",
    }


def _bypass_description(bypass: Bypass) -> str:
    text = f"parts of {bypass.part} pixels with an edge peak below {bypass.threshold:g}"
    if bypass.share is None or bypass.loss_db is None:
        return text
    return f"{text}: {percent(bypass.share)} of the validation pixels, {_loss(bypass.loss_db)}"


def _loss(loss_db: float) -> str:
    return f"a loss of {loss_db:.3f} dB" if loss_db >= 0 else f"a gain of {-loss_db:.3f} dB"


def svg_uri(figure: Figure) -> str:
    """Return a figure as an SVG data URI. Equal figures give equal text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "cabm"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
