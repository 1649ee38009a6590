"""The figures and crops of the evaluate stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cabm.data.store import PackedStore
from cabm.errors import InputError
from cabm.evaluation.comparison import Method
from cabm.evaluation.quality import psnr_y
from cabm.files import atomic_write, write_json
from cabm.imaging.images import write_image
from cabm.project.sections import EvaluateSettings
from cabm.reporting.bits import edge_hypothesis, psnr_against_fab, table_picture, trade_off_rows
from cabm.reporting.overlays import bit_map_overlay, crops_side_by_side, detailed_boxes
from cabm.tables.observations import Observations
from cabm.tables.table import EdgeToBitTable
from cabm.upscaling.tiles import TiledResult

CROP = 96  # output pixels
WIDE_CROP = 168  # for the report, where three fit side by side at twice their size
ORIGINAL = "original"
SHOWN_METHODS = {"bicubic": "bicubic", "full_precision": "float", "cabm": "CABM"}


@dataclass(frozen=True)
class ShownImage:
    """The test image that figures show.

    Attributes:
        name: ``set/image``.
        low: (h, w, 3) uint8, the input.
        versions: (H, W, 3) uint8 by caption, the original first.
        cabm: the result of CABM with its tiles.
    """

    name: str
    low: np.ndarray
    versions: dict[str, np.ndarray]
    cabm: TiledResult


def show_image(
    methods: Mapping[str, Method], sets: Mapping[str, PackedStore], settings: EvaluateSettings
) -> ShownImage:
    """Upscale the image to show by the methods that the figures compare.

    Args:
        methods: all methods by name.
        sets: test sets by name.
        settings: the tiles, and which image to show.

    Raises:
        InputError: the image to show is not in any test set.
    """
    store, index = chosen_image(sets, settings.picture)
    set_name = next(name for name, candidate in sets.items() if candidate is store)
    low = store.lr(index)
    results = {
        name: methods[name].upscale(settings, store.scale, whole=False)(low) for name in SHOWN_METHODS
    }
    versions = {ORIGINAL: np.asarray(store.hr(index))}
    versions |= {caption: results[name].image for name, caption in SHOWN_METHODS.items()}
    return ShownImage(f"{set_name}/{store.names[index]}", np.asarray(low), versions, results["cabm"])


def make_pictures(
    shown: ShownImage,
    table: EdgeToBitTable,
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]],
    observations: Observations,
) -> dict[str, Figure]:
    """Draw the figures of an evaluation.

    Args:
        shown: the image for the bit map and the crops.
        table: the table of the CABM model.
        summary: means by test set and method.
        observations: the observations that the table was built from.

    Returns:
        Figures by name.
    """
    rows = [row for name, methods in summary.items() for row in trade_off_rows(name, methods)]
    boxes = detailed_boxes(shown.versions[ORIGINAL], CROP, 3)
    cabm = shown.cabm
    return {
        "psnr_against_fab": psnr_against_fab(rows),
        "edge_to_bit": table_picture(table),
        "edge_hypothesis": edge_hypothesis(observations.scores, observations.bits, observations.layers),
        "bit_map": bit_map_overlay(shown.low, cabm.plan, table.fab_of(cabm.scores), cabm.parts),
        "crops": crops_side_by_side(shown.versions, boxes),
    }


def chosen_image(sets: Mapping[str, PackedStore], picture: str | None) -> tuple[PackedStore, int]:
    """Return the store and index of ``set/image``; by default the first image of the last set.

    Raises:
        InputError: there is no such set or image.
    """
    if picture is None:
        return list(sets.values())[-1], 0
    set_name, _, image = picture.partition("/")
    if set_name not in sets or image not in sets[set_name].names:
        raise InputError(f"evaluate.picture: no image {picture!r}; give set/image, sets: {', '.join(sets)}")
    return sets[set_name], list(sets[set_name].names).index(image)


def save_figures(figures: Mapping[str, Figure], directory: Path) -> None:
    """Write each figure as DIRECTORY/NAME.png."""
    for name, figure in figures.items():
        with atomic_write(directory / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110)


def save_crops(shown: ShownImage, directory: Path) -> None:
    """Write crops of the most detailed places, one PNG per version, and their list in ``crops.json``."""
    original = shown.versions[ORIGINAL]
    crops = []
    for number, (y0, x0, y1, x1) in enumerate(detailed_boxes(original, WIDE_CROP, 3)):
        target = np.ascontiguousarray(original[y0:y1, x0:x1])
        versions = {}
        for caption, image in shown.versions.items():
            crop = np.ascontiguousarray(image[y0:y1, x0:x1])
            file = f"{number}_{caption}.png"
            write_image(directory / file, crop)
            psnr = psnr_y(crop, target, 0)
            versions[caption] = {"file": file, "psnr": round(psnr, 4) if math.isfinite(psnr) else None}
        crops.append({"box": [y0, x0, y1, x1], "versions": versions})
    write_json(directory / "crops.json", {"image": shown.name, "crops": crops})
