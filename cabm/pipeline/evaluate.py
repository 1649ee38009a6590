"""The stage `evaluate`: measure every step on every test set, draw figures and write the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cabm.data.store import PackedStore
from cabm.evaluation.comparison import (
    Method,
    compare,
    control_methods,
    image_rows,
    load_methods,
    protocol_description,
    summarise,
    write_rows,
)
from cabm.files import write_json
from cabm.machine.cpu import environment
from cabm.pipeline.stage import Stage
from cabm.tables.observations import Observations


def evaluate(stage: Stage) -> None:
    """Write metrics, per-image results, figures and the report."""
    from cabm.reporting.page import write_report
    from cabm.reporting.pictures import make_pictures, save_crops, save_figures, show_image

    started = time.perf_counter()
    observations = Observations.load(stage.tables / "observations.npz")
    methods = _methods(stage, observations)
    folders = sorted(path.parent for path in (stage.data / "test").glob("*/index.json"))
    sets = {folder.name: PackedStore.open(folder) for folder in folders}
    shown = show_image(methods, sets, stage.params.evaluate)  # first: it may refuse evaluate.picture
    summary, images = _measure(stage, methods, sets)
    engines = {name: method.chosen.engine for name, method in methods.items() if method.chosen}
    _write_quality(stage, summary, images, engines)
    figures = make_pictures(shown, methods["cabm"].loaded.table, summary["tiles"], observations)
    save_figures(figures, stage.results / "figures")
    save_crops(shown, stage.results / "crops")
    for name, figure in figures.items():
        stage.tracker.figure(name, figure)
    stage.tracker.pipeline_figure("psnr_against_fab", figures["psnr_against_fab"])
    _write_headline(stage, headline(summary["tiles"]))
    write_json(stage.timing / "evaluate.json", {"seconds": round(time.perf_counter() - started, 2)})
    write_report(Path(), stage.results)


def _methods(stage: Stage, observations: Observations) -> dict[str, Method]:
    """Return bicubic, every step's model and the controls that params ask for, by name."""
    settings = stage.params.evaluate
    methods = {method.name: method for method in load_methods(stage.models, settings.engine)}
    table = methods["cabm"].loaded.table
    if settings.controls and len(table.rows) > 1:  # one row has no others to compare with
        methods |= {method.name: method for method in control_methods(methods["cabm"], observations)}
    return methods


def _measure(
    stage: Stage, methods: dict[str, Method], sets: dict[str, PackedStore]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the means as ``summary[protocol][set][method]``, and one row per image."""
    settings = stage.params.evaluate
    summary: dict[str, dict[str, Any]] = {}
    images: list[dict[str, Any]] = []
    passes = len(methods) * len(sets) * (2 if settings.whole_image else 1)
    measured_sets = compare(list(methods.values()), sets, settings)
    for protocol, set_name, method, results in tqdm(measured_sets, "evaluate", passes, unit="set"):
        row = summarise(methods[method], results)
        summary.setdefault(protocol, {}).setdefault(set_name, {})[method] = row
        images += image_rows(protocol, set_name, method, results)
        numbers = {f"{protocol}/{set_name}/{method}/{name}": value for name, value in row.items()}
        stage.tracker.metrics(numbers, 0)
    return summary, images


def _write_quality(
    stage: Stage,
    summary: dict[str, dict[str, Any]],
    images: list[dict[str, Any]],
    engines: dict[str, str],
) -> None:
    """Write and record the means, the images' rows, and the engine of each method."""
    described = protocol_description(stage.params.evaluate, stage.params.model.scale)
    quality = {"protocol": described, "environment": environment(torch.get_num_threads())}
    quality["engines"] = engines
    write_json(stage.results / "quality.json", quality | {"results": summary})
    write_json(stage.metrics / "evaluate.json", {"protocol": described})
    write_rows(stage.results / "images.csv", images)
    for set_name in summary["tiles"]:
        rows = [row for row in images if row["set"] == set_name]
        stage.tracker.table(f"images_{set_name}", rows)


def _write_headline(stage: Stage, rows: dict[str, dict[str, float]]) -> None:
    """Write and record the numbers that experiments are compared by."""
    settings = stage.params.evaluate
    protocol = f"Y, shave {stage.params.model.scale}, LR tiles of {settings.tile}, stride {settings.stride}"
    write_json(stage.metrics / "quality.json", {"protocol": protocol} | rows)
    stage.tracker.pipeline_metrics(
        {f"{set_name}/{name}": value for set_name, row in rows.items() for name, value in row.items()},
        shown=[
            f"{set_name}/{name}" for set_name in rows for name in ("float_psnr", "cabm_psnr", "cabm_fab")
        ],
    )


def headline(tiles: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the numbers that experiments are compared by, as ``rows[set][name]``, to four digits."""
    wanted = {
        "bicubic_psnr": ("bicubic", "psnr"),
        "float_psnr": ("full_precision", "psnr"),
        "pams_psnr": ("pams", "psnr"),
        "cadyq_psnr": ("cadyq", "psnr"),
        "cadyq_fab": ("cadyq", "fab"),
        "cabm_psnr": ("cabm", "psnr"),
        "cabm_ssim": ("cabm", "ssim"),
        "cabm_fab": ("cabm", "fab"),
        "cabm_bypassed": ("cabm", "bypassed"),
    }
    return {
        set_name: {
            name: round(rows[method][key], 4)
            for name, (method, key) in wanted.items()
            if key in rows[method]
        }
        for set_name, rows in tiles.items()
    }
