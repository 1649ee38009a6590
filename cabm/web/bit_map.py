"""The bit map as a drawing that a browser can ask for the numbers of a tile."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape

import numpy as np
from matplotlib.colors import Normalize, to_hex

from cabm.reporting.style import bit_colormap, bit_scale
from cabm.tiling.parts import TileParts, in_image
from cabm.upscaling.upscaler import Report


def bit_map(report: Report, under: str) -> str:
    """Return the bits of the tiles over an image, as HTML.

    A path per colour, not a shape per tile, keeps thousands of tiles light. ``assets/bit_map.js`` finds the
    tile under the pointer by the lines of the grid and shows its numbers.

    Args:
        report: what the image took.
        under: data URI of the image below.
    """
    plan = report.plan
    parts = report.parts
    if parts is None:
        parts = TileParts.all_computed(len(plan), plan.tile_height, plan.tile_width)
    drawn, legend = "", ""
    if report.bits is not None:
        means = np.round(report.bits.mean(axis=1), 2)
        scale = bit_scale(means[parts.entered])
        drawn, legend = _coloured(report, parts, means, scale), _legend(scale, parts)
    _, left_out = in_image(plan, parts.boxes_left_out)
    ratio = plan.width / plan.height
    numbers = escape(json.dumps(tile_numbers(report, parts), separators=(",", ":")))
    return (
        f'<figure class="bit-map" data-tiles="{numbers}"><div class="frame" style="--ratio:{ratio:.5f}">'
        f'<svg viewBox="0 0 {plan.width} {plan.height}" tabindex="0" role="application"'
        ' aria-label="Bits of each tile; arrow keys choose a tile, Enter shows it">'
        f"{_hatch(max(plan.height, plan.width) / 160)}"
        f'<image href="{under}" width="{plan.width}" height="{plan.height}" preserveAspectRatio="none"/>'
        f'{drawn}<path class="bypassed" d="{_path(left_out)}"/><rect class="chosen"/></svg>'
        f'<output class="tip" hidden></output></div>{legend}</figure>'
    )


def tile_numbers(report: Report, parts: TileParts) -> dict[str, list]:
    """Return the lines of the grid, and for each tile its score, bits, milliseconds and bypassed %."""
    owned = report.plan.owned(2) / 2
    columns = report.plan.num_columns

    def rounded(values: np.ndarray | None, digits: int) -> list[float]:
        return [] if values is None else np.round(values, digits).tolist()

    return {
        "rows": [*owned[::columns, 0].tolist(), float(report.plan.height)],
        "columns": [*owned[:columns, 1].tolist(), float(report.plan.width)],
        "score": rounded(report.scores, 2),
        "bits": rounded(None if report.bits is None else report.bits.mean(axis=1), 2),
        "ms": rounded(None if report.tile_seconds is None else report.tile_seconds * 1000, 1),
        "bypassed": rounded(parts.share * 100, 0),
    }


def _coloured(report: Report, parts: TileParts, means: np.ndarray, scale: Normalize) -> str:
    """Return a path for each mean of bits over the computed parts of its tiles."""
    colormap = bit_colormap(scale)
    tiles, boxes = in_image(report.plan, [[region.core for region in of] for of in parts.regions])
    paths = []
    for mean in np.unique(means[tiles]):
        color = to_hex(colormap(scale(mean)))
        paths.append(f'<path class="bits" fill="{color}" d="{_path(boxes[means[tiles] == mean])}"/>')
    return "".join(paths)


def _legend(scale: Normalize, parts: TileParts) -> str:
    colormap = bit_colormap(scale)
    stops = ",".join(to_hex(colormap(place)) for place in np.linspace(0, 1, 9))
    bypassed = f'<span class="hatch">bypassed {parts.share.mean():.0%}</span>' if parts.share.any() else ""
    return (
        f"<figcaption>{scale.vmin:g} bits"
        f'<span class="ramp" style="background:linear-gradient(90deg,{stops})"></span>'
        f"{scale.vmax:g} bits{bypassed}</figcaption>"
    )


def _hatch(distance: float) -> str:
    """Return the pattern of bypassed parts, with lines so many input pixels apart."""
    return (
        f'<defs><pattern id="bypassed" width="{distance:g}" height="{distance:g}"'
        ' patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="100%" height="100%" fill="#fff" opacity="0.3"/>'
        f'<path d="M0 0V{distance:g}" stroke="#555" stroke-width="{distance / 5:g}"/></pattern></defs>'
    )


def _path(boxes: Iterable[np.ndarray]) -> str:
    """Return rectangles, y0, x0, y1, x1 each, as the data of one path."""
    return "".join(f"M{x0:g} {y0:g}H{x1:g}V{y1:g}H{x0:g}z" for y0, x0, y1, x1 in boxes)
