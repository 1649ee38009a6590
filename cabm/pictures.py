"""The evaluate stage's figures, as files and as figures of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cabm.comparison import Method
from cabm.config import EvaluateSettings
from cabm.data.store import PackedStore
from cabm.errors import InputError
from cabm.files import atomic_write
from cabm.observations import Observations
from cabm.overlays import bit_map_overlay, crops_side_by_side, detailed_boxes
from cabm.report import edge_hypothesis, psnr_against_fab, table_picture

CROP = 96  # output pixels


def make_pictures(
    methods: Mapping[str, Method],
    sets: Mapping[str, PackedStore],
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]],
    observations: Observations,
    settings: EvaluateSettings,
) -> dict[str, Figure]:
    """Draw the figures of an evaluation.

    Args:
        methods: bicubic and the steps, by name.
        sets: test sets by name.
        summary: means by set and method.
        observations: what the table was built from.
        settings: tiles, and which image to show.

    Raises:
        InputError: the image to show is not in the sets.
    """
    rows = [
        {"method": method, "set": set_name, "psnr": row["psnr"], "fab": row.get("fab", fab_of(method))}
        for set_name, by_method in summary.items()
        for method, row in by_method.items()
    ]
    table = methods["cabm"].loaded.table
    store, index = chosen_image(sets, settings.picture)
    low, high = store.lr(index), store.hr(index)
    shown = {"HR": np.asarray(high)}
    results = {}
    for name, caption in (("bicubic", "bicubic"), ("full_precision", "float"), ("cabm", "CABM")):
        results[name] = methods[name].enlarge(settings, store.scale, whole=False)(low)
        shown[caption] = results[name].image
    cabm = results["cabm"]
    size = min(CROP, *high.shape[:2])
    return {
        "psnr_against_fab": psnr_against_fab(rows),
        "edge_to_bit": table_picture(table),
        "edge_hypothesis": edge_hypothesis(observations.scores, observations.bits, observations.layers),
        "bit_map": bit_map_overlay(np.asarray(low), cabm.plan, table.fab_of(cabm.scores)),
        "crops": crops_side_by_side(shown, detailed_boxes(high, size, 3)),
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
