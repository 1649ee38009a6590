"""The evaluate stage's figures, as files and as figures of its run."""

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
from cabm.reporting.bits import edge_hypothesis, psnr_against_fab, table_picture
from cabm.reporting.overlays import bit_map_overlay, crops_side_by_side, detailed_boxes
from cabm.tables.controls import CONTROLS
from cabm.tables.observations import Observations
from cabm.tables.table import EdgeToBitTable
from cabm.upscaling.tiles import TiledResult

CROP = 96  # output pixels
WIDE_CROP = 168  # of the crops that the report lays over each other; three fit its width, doubled
ORIGINAL = "original"
SHOWN_METHODS = {"bicubic": "bicubic", "full_precision": "float", "cabm": "CABM"}


@dataclass(frozen=True)
class ShownImage:
    """The test image that pictures show.

    Attributes:
        name: ``set/image``.
        low: (h,w,3) uint8, the input.
        versions: (H,W,3) uint8 by caption, the original first.
        cabm: what CABM's tiles took.
    """

    name: str
    low: np.ndarray
    versions: dict[str, np.ndarray]
    cabm: TiledResult


def show_image(
    methods: Mapping[str, Method], sets: Mapping[str, PackedStore], settings: EvaluateSettings
) -> ShownImage:
    """Upscale the image that pictures show by the methods that they compare.

    Args:
        methods: bicubic and the steps, by name.
        sets: test sets by name.
        settings: tiles, and which image to show.

    Raises:
        InputError: the image to show is not in the sets.
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
        shown: the image for bit map and crops.
        table: of the CABM model.
        summary: means by set and method.
        observations: what the table was built from.
    """
    rows = [
        {
            "method": method,
            "set": set_name,
            "psnr": row["psnr"],
            "fab": row.get("fab", fab_of(method)),
        }
        for set_name, by_method in summary.items()
        for method, row in by_method.items()
        if method not in CONTROLS  # too near to CABM for labels; tables have them
    ]
    boxes = detailed_boxes(shown.versions[ORIGINAL], CROP, 3)
    return {
        "psnr_against_fab": psnr_against_fab(rows),
        "edge_to_bit": table_picture(table),
        "edge_hypothesis": edge_hypothesis(observations.scores, observations.bits, observations.layers),
        "bit_map": bit_map_overlay(
            shown.low,
            shown.cabm.plan,
            table.fab_of(shown.cabm.scores) * shown.cabm.parts.entered,
            shown.cabm.parts,
        ),
        "crops": crops_side_by_side(shown.versions, boxes),
    }


def fab_of(method: str) -> float | None:
    """Return the FAB of a method that measures none: 8 for PAMS, None for float and bicubic."""
    return 8.0 if method == "pams" else None


def chosen_image(sets: Mapping[str, PackedStore], picture: str | None) -> tuple[PackedStore, int]:
    """Return the store and index of ``set/image``; by default the last set's first image.

    Raises:
        InputError: there is no such image.
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
    """Write an image's most detailed places, a PNG per version, and ``crops.json`` that lists them."""
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
