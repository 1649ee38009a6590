"""Figures over photographs: a map of bits, and crops side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from cabm.evaluation.quality import psnr_y
from cabm.reporting.style import HATCH, INK, bit_colormap, bit_scale
from cabm.tiling.edges import edges_of_image
from cabm.tiling.parts import Box, TileParts, in_image
from cabm.tiling.plan import TilePlan, plan

_BOX_COLORS = ("#e4572e", "#2f9ec4", "#7fb800", "#f2a900")
_MAX_SHOWN_PIXELS = 1600


def bit_map_overlay(
    image: np.ndarray, tile_plan: TilePlan, fab_per_tile: ArrayLike, parts: TileParts | None = None
) -> Figure:
    """Draw the mean bits of each tile over an image, with bypassed parts hatched.

    Args:
        image: (H, W, 3) uint8, the input or its upscaled version.
        tile_plan: the tiles of the input.
        fab_per_tile: (N,) mean bits of each tile; those of tiles that are bypassed as a whole do not count.
        parts: the bypassed parts; None: all tiles are computed.
    """
    values = np.asarray(fab_per_tile, dtype=np.float64)
    if parts is None:
        parts = TileParts.all_computed(len(values), tile_plan.tile_height, tile_plan.tile_width)
    computed = values[parts.entered]
    height, width = tile_plan.height, tile_plan.width
    shown = image[_thinned(image.shape[0]), _thinned(image.shape[1])]
    panel_width = 8.0
    figure = Figure(
        figsize=(panel_width + 1.1, max(panel_width * height / width, 1.6) + 0.7), layout="constrained"
    )
    axes = figure.subplots()
    # in gray, so that no colour of the image looks like bits, and pale, so that dark areas show them
    gray = 255 - 0.62 * (255 - (shown.mean(axis=2) if shown.ndim == 3 else shown))
    axes.imshow(gray, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    scale = bit_scale(computed)
    colormap = bit_colormap(scale)
    cores = [[region.core for region in regions] for regions in parts.regions]
    owner, drawn = _rectangles(tile_plan, cores)
    boxes = PatchCollection(drawn, linewidth=0.5, edgecolor="white")
    boxes.set_facecolor(colormap(scale(values[owner])))
    boxes.set_alpha(0.6)
    axes.add_collection(boxes)
    _, left_out = _rectangles(tile_plan, parts.boxes_left_out)
    pale, dark = (1, 1, 1, 0.25), (0.35, 0.35, 0.35, 0.8)
    axes.add_collection(
        PatchCollection(left_out, facecolor=pale, edgecolor=dark, linewidth=0.0, hatch=HATCH)
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    bar = figure.colorbar(ScalarMappable(scale, colormap), ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("mean bits of the tile")
    bar.outline.set_visible(False)
    mean = f"FAB {computed.mean():.2f}" if len(computed) else "nothing computed"
    title = f"{len(values)} tiles, {mean}, {parts.share.mean():.0%} bypassed"
    axes.set_title(title, color=INK, fontsize=11)
    return figure


def _rectangles(tile_plan: TilePlan, boxes: list[list[Box]]) -> tuple[np.ndarray, list[Rectangle]]:
    """Turn boxes of tiles into rectangles of the image; return the tile of each rectangle, too."""
    tiles, placed = in_image(tile_plan, boxes)
    return tiles, [Rectangle((x0, y0), x1 - x0, y1 - y0) for y0, x0, y1, x1 in placed.tolist()]


def crops_side_by_side(
    images: Mapping[str, np.ndarray], boxes: Sequence[tuple[int, int, int, int]]
) -> Figure:
    """Draw the same crops of several versions of one image, with their PSNR on Y against the first.

    Args:
        images: (H, W, 3) uint8 of one size by caption, the original first.
        boxes: y0, x0, y1, x1 of each crop, drawn in one row each; see :func:`detailed_boxes`.
    """
    names = list(images)
    original = images[names[0]]
    height, width = original.shape[:2]
    overview = 2.0 * min(width / height, 2.2)
    figure = Figure(
        figsize=(overview + 2.0 * len(names) + 0.2, 2.3 * len(boxes) + 0.1), layout="constrained"
    )
    grid = figure.add_gridspec(len(boxes), 1 + len(names), width_ratios=[overview, *[2.0] * len(names)])
    whole = figure.add_subplot(grid[:, 0])
    whole.imshow(original[_thinned(height), _thinned(width)], cmap="gray", extent=(0, width, height, 0))
    whole.set_axis_off()
    for row, (y0, x0, y1, x1) in enumerate(boxes):
        color = _BOX_COLORS[row % len(_BOX_COLORS)]
        whole.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=1.8))
        for column, name in enumerate(names):
            axes = figure.add_subplot(grid[row, column + 1])
            crop = images[name][y0:y1, x0:x1]
            axes.imshow(crop, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=1.6)
            caption = name
            if column:
                psnr = psnr_y(np.ascontiguousarray(crop), np.ascontiguousarray(original[y0:y1, x0:x1]), 0)
                caption += f"  {psnr:.2f} dB"
            axes.set_title(caption, fontsize=9, color=INK, pad=4)
    return figure


def detailed_boxes(image: np.ndarray, size: int, count: int) -> list[tuple[int, int, int, int]]:
    """Find the squares of an image with the most edges.

    Args:
        image: (H, W, 3) uint8.
        size: side of a square in pixels; smaller if the image is.
        count: how many at most; they do not overlap.

    Returns:
        y0, x0, y1, x1 of each square, ends excluded.
    """
    size = min(size, *image.shape[:2])
    tiles = plan(image.shape[0], image.shape[1], size, max(size // 2, 1))
    order = np.argsort(-edges_of_image(image, tiles).scores, kind="stable")
    chosen: list[tuple[int, int, int, int]] = []
    # well apart if the image has room, else without overlap
    for distance in (max(2 * size, min(image.shape[:2]) // 2), size):
        for y0, x0, y1, x1 in tiles.boxes[order].tolist():
            apart = all(max(abs(y0 - b[0]), abs(x0 - b[1])) >= distance for b in chosen)
            if apart and len(chosen) < count:
                chosen.append((y0, x0, y1, x1))
    return chosen


def _thinned(length: int) -> slice:
    """Select every n-th pixel, so that the figure of an 8K image draws no more than it shows."""
    return slice(None, None, max(length // _MAX_SHOWN_PIXELS, 1))
