"""The tables of the report, with numbers formatted as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cabm.checkpoints.model_files import ModelConfig
from cabm.project.params import Params, flat_texts
from cabm.reporting.inputs import STAGES, ImageRow, Measured, ReportData, Timing, TrainingMetrics

MISSING = "–"
LABELS = {
    "full_precision": "float",
    "pams": "PAMS",
    "cadyq": "CADyQ",
    "cabm": "CABM",
    "cabm_shuffled": "CABM, rows shuffled",
    "cabm_constant": "CABM, one row for all",
}
STAGE_WORK = {
    "prepare": "pack the images",
    "full_precision": "train in float",
    "pams": "train at 8 bits",
    "cadyq": "train the bit selectors",
    "edge_to_bit": "build the table",
    "cabm": "fine-tune with the table",
    "evaluate": "measure all models",
}
# sections with the addresses of servers, which may hold a password
NOT_SHOWN = {"tracking", "serving"}


def label(method: str) -> str:
    """Return the display name of a method."""
    return LABELS.get(method, method)


def decimal(value: float | None, digits: int, *, significant: bool = False) -> str:
    """Return a number with ``digits`` decimals or significant digits; a dash for None and infinity."""
    if value is None or not math.isfinite(value):
        return MISSING
    if significant:
        digits = max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    return f"{value:.{digits}f}"


def percent(share: float) -> str:
    """Return a share 0..1 in percent, with one decimal below 10 %."""
    return f"{100 * share:.{1 if 0 < share < 0.0995 else 0}f} %"


def duration(seconds: float | None) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def result_groups(sets: Mapping[str, Mapping[str, Measured]]) -> list[dict[str, Any]]:
    """Return one group per test set, with one row per method: its label, whether it is CABM, and cells."""
    groups = []
    for name, rows in sets.items():
        eight = rows["pams"].bitops_image_T if "pams" in rows else None
        lines = []
        for method, row in rows.items():
            bitops = row.bitops_image_T
            cells = [
                decimal(row.psnr, 2),
                decimal(row.ssim, 3),
                {"full_precision": "32", "pams": "8"}.get(method, decimal(row.fab, 2)),
                MISSING if row.bypassed is None else percent(row.bypassed),
                decimal(bitops, 3, significant=True),
                _ratio(bitops, eight),
                decimal(row.bitops_tile_T, 3, significant=True),
                decimal(row.seconds, 3, significant=True),
            ]
            lines.append({"method": label(method), "ours": method == "cabm", "cells": cells})
        groups.append({"set": name, "rows": lines})
    return groups


def _ratio(part: float | None, whole: float | None) -> str:
    """Return a ratio in percent, or as a factor from 2."""
    if part is None or not whole:
        return MISSING
    return percent(part / whole) if part < 2 * whole else f"{part / whole:.1f} ×"


def stage_rows(data: ReportData) -> list[dict[str, str]]:
    """Return the settings, time and validation of each stage that has run."""
    rows = []
    for name in STAGES:
        if name not in data.metrics:
            continue
        metrics, settings = data.metrics[name], _settings(data.models.get(name))
        batch = f"{settings['batch_size']} of {settings['patch']}²" if "batch_size" in settings else MISSING
        validation = metrics.validation if isinstance(metrics, TrainingMetrics) else None
        timing = data.timing.get(name, Timing())
        rows.append(
            {
                "stage": name,
                "work": STAGE_WORK[name],
                "steps": str(settings.get("steps", MISSING)),
                "batch": batch,
                "rate": str(settings.get("learning_rate", MISSING)),
                "seconds": duration(timing.seconds),
                "throughput": _throughput(name, timing, data.images),
                "psnr": decimal(validation.psnr if validation else None, 2),
                "fab": decimal(validation.fab if validation else None, 2),
            }
        )
    return rows


def _settings(config: ModelConfig | None) -> Mapping[str, Any]:
    """Return the training settings that a model records; empty if there are none."""
    settings = {} if config is None else config.provenance.get("settings")
    return settings if isinstance(settings, dict) and {"batch_size", "patch"} <= settings.keys() else {}


def _throughput(name: str, timing: Timing, images: Sequence[ImageRow]) -> str:
    """Return patches or tiles per second; those of the evaluation are CABM's."""
    if timing.patches_per_second is not None:
        return f"{decimal(timing.patches_per_second, 3, significant=True)} patches/s"
    if timing.tiles_per_second is not None:
        return f"{decimal(timing.tiles_per_second, 3, significant=True)} tiles/s"
    ours = [row for row in images if row.method == "cabm" and row.protocol == "tiles"]
    seconds = sum(row.seconds for row in ours)
    if name == "evaluate" and seconds:
        return f"{decimal(sum(row.tiles for row in ours) / seconds, 3, significant=True)} tiles/s (CABM)"
    return MISSING


def image_table(images: Sequence[ImageRow]) -> dict[str, Any] | None:
    """Return the results of each image: column heads, and one row per image by protocol.

    A cell is its text and the number to sort by; None: sort by the text.
    """
    if not images:
        return None
    methods = list(dict.fromkeys(row.method for row in images))
    by_protocol: dict[str, dict[tuple[str, str], dict[str, ImageRow]]] = {}
    for row in images:
        by_protocol.setdefault(row.protocol, {}).setdefault((row.set, row.image), {})[row.method] = row
    with_bits = {row.method for row in images if row.fab is not None}
    bits = [method for method in methods if method in with_bits]
    heads = ["set", "image", *(label(method) for method in methods)]
    heads += [f"FAB {label(method)}" for method in bits]
    heads += ["bypassed", "SSIM", "tiles", "seconds"]
    protocols = {}
    for protocol, found in by_protocol.items():
        rows = []
        for (set_name, image), of_method in found.items():
            last = of_method.get("cabm") or list(of_method.values())[-1]
            cells = [(set_name, None), (image, None)]
            cells += [_cell(of_method[m].psnr if m in of_method else None, 2) for m in methods]
            cells += [_cell((of_method[m].fab or None) if m in of_method else None, 2) for m in bits]
            cells.append((percent(last.bypassed), last.bypassed))
            cells += [_cell(last.ssim, 3), _cell(last.tiles, 0), _cell(last.seconds, 2)]
            rows.append(cells)
        protocols[protocol] = rows
    return {"heads": heads, "num_psnr": len(methods), "protocols": protocols}


def _cell(value: float | None, digits: int) -> tuple[str, float]:
    return decimal(value, digits), -1.0 if value is None else value


def param_sections(params: Params | None) -> list[dict[str, Any]]:
    """Return the sections of params.yaml with defaults filled in, as names and texts."""
    if params is None:
        return []
    dumped = params.model_dump(mode="json", exclude=NOT_SHOWN)
    dumped["model"]["options"] = params.model.chosen_options()
    for name in ("train", "test"):  # lists of sources: train.0.source, train.0.path, ...
        dumped["prepare"][name] = dict(enumerate(dumped["prepare"][name]))
    sections = {name: flat_texts(values).items() for name, values in dumped.items()}
    return [
        {"name": name, "values": [(key, text) for key, text in texts if text not in ("null", "{}")]}
        for name, texts in sections.items()
    ]


def model_rows(models: Mapping[str, ModelConfig]) -> list[dict[str, str]]:
    """Return the precision, origin and version of each model."""
    rows = []
    for name, config in models.items():
        inputs = config.provenance.get("inputs")
        inputs = inputs if isinstance(inputs, dict) else {}
        precision = config.precision
        widths = {"float": "32-bit float", "pams": "8 bits"}.get(
            precision.kind, f"{', '.join(map(str, precision.search_space))} bits"
        )
        weights = "" if precision.kind == "float" else f", weights {precision.weight_bits}"
        rows.append(
            {
                "name": name,
                "precision": widths + weights,
                "options": ", ".join(f"{key} {value:g}" for key, value in config.options.items()),
                "sha256": config.weights_sha256[:12],
                "start": str(inputs.get("start", ""))[:12] or MISSING,
                "teacher": str(inputs.get("teacher", ""))[:12] or MISSING,
                "train": str(inputs.get("train", ""))[:12] or MISSING,
                "version": str(config.provenance.get("version", MISSING)),
            }
        )
    return rows
