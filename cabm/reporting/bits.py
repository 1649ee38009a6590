"""Figures of bits: PSNR against bits, the bits of a table, and bits against edge scores.

Functions return a matplotlib ``Figure``; callers save it. Figures are made without pyplot, so that no
global state changes and no display is needed. A bit-width has the same colour in all figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from cabm.quant.levels import PAMS_BITS
from cabm.reporting.style import FAINT, INK, WIDEST, bit_color, plain
from cabm.tables.controls import CONTROLS
from cabm.tables.table import EdgeToBitTable


class _Look(NamedTuple):
    label: str
    color: str
    marker: str = "o"


_METHODS = {
    "bicubic": _Look("bicubic", "#8c8c8c", "x"),
    "full_precision": _Look("float", "#262626", "o"),
    "pams": _Look("PAMS", "#c96a1f", "s"),
    "cadyq": _Look("CADyQ", "#2f7f86", "^"),
    "cabm": _Look("CABM", "#6b1353", "D"),
}
_OTHER_COLORS = ("#4c6fb1", "#5d8a3a", "#a63d40", "#7d6b2f")


def psnr_against_fab(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw PSNR against FAB, one panel per test set.

    Args:
        rows: one per method and test set, with ``method``, ``set``, ``psnr`` in dB and ``fab``. Float and
            bicubic have no FAB (missing, None or above 8); they are drawn as horizontal lines.
    """
    sets = list(dict.fromkeys(str(row["set"]) for row in rows))
    columns = min(len(sets), 3 if len(sets) != 4 else 2)
    lines = -(-len(sets) // columns)
    figure = Figure(figsize=(4.1 * columns, 3.5 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    looks = _method_looks([str(row["method"]) for row in rows])
    for panel, name in zip(panels, sets, strict=False):
        _draw_trade_off(panel, [row for row in rows if str(row["set"]) == name], looks)
        panel.set_title(name, loc="left", color=INK, fontsize=11)
    for panel in panels[len(sets) :]:
        panel.set_visible(False)
    return figure


def trade_off_rows(set_name: str, methods: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one test set for :func:`psnr_against_fab`.

    Args:
        set_name: name of the test set.
        methods: means by method; see `cabm.evaluation.comparison.summarise`.
    """
    return [
        {
            "set": set_name,
            "method": method,
            "psnr": row["psnr"],
            "fab": float(PAMS_BITS) if method == "pams" else row.get("fab"),
        }
        for method, row in methods.items()
        if method not in CONTROLS  # too close to CABM for labels; the tables have them
    ]


def table_picture(table: EdgeToBitTable) -> Figure:
    """Draw the bits of every layer by edge score, with the FAB above; as bars if the table has one row."""
    if len(table.rows) == 1:
        return _row_picture(table)
    num_layers, widths = len(table.layers), table.search_space
    end = max(table.thresholds[-1] * 1.08, table.thresholds[-1] + 1)
    starts = np.concatenate([[0.0], table.thresholds[1:]])
    edges = np.concatenate([starts, [end]])
    figure = Figure(figsize=(8.5, 2.6 + 0.17 * max(num_layers, 8)), layout="constrained")
    curve, grid = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, 0.17 * max(num_layers, 8)])

    curve.stairs(table.fab_of(starts), edges, color=bit_color(8), linewidth=1.3, baseline=None)
    curve.set_ylabel("FAB")
    curve.set_ylim(widths[0] - 0.3, widths[-1] + 0.3)
    curve.set_yticks(widths)
    plain(curve)
    curve.grid(visible=False, axis="x")

    codes = np.searchsorted(widths, table.rows).T
    colors = ListedColormap([bit_color(width) for width in widths])
    grid.pcolormesh(edges, np.arange(num_layers + 1), codes, cmap=colors, vmin=-0.5, vmax=len(widths) - 0.5)
    grid.set_yticks(np.arange(num_layers) + 0.5, table.layers, fontsize=7)
    grid.tick_params(axis="y", length=0)
    grid.invert_yaxis()
    grid.set_xlim(0, end)
    grid.set_xlabel("edge score")
    for spine in grid.spines.values():
        spine.set_visible(False)
    handles = [Patch(facecolor=bit_color(w), label=f"{w} bits") for w in widths]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    title = _table_title(table, f"{len(table.rows)} rows, strategy {table.strategy}")
    figure.suptitle(title, color=INK, fontsize=11)
    return figure


def _row_picture(table: EdgeToBitTable) -> Figure:
    """Draw the bits that every tile has, one bar per layer."""
    row, places = table.rows[0], np.arange(len(table.layers))
    figure = Figure(figsize=(8.5, 1.0 + 0.19 * max(len(places), 8)), layout="constrained")
    axes = figure.subplots()
    axes.barh(places, row, color=[bit_color(width) for width in row], height=0.8)
    axes.set_yticks(places, table.layers, fontsize=7)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.set_xticks(range(9))
    axes.set_xlabel("bits")
    plain(axes)
    axes.tick_params(axis="y", length=0)
    title = _table_title(table, f"one row for all tiles, FAB {row.mean():.2f}")
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    return figure


def _table_title(table: EdgeToBitTable, rows: str) -> str:
    bypass = "" if table.bypass is None else f"; bypass below an edge peak of {table.bypass.threshold:g}"
    return f"{table.backbone} x{table.scale}: {rows}{bypass}"


def edge_hypothesis(scores: ArrayLike, bits: ArrayLike, layers: Sequence[str]) -> Figure:
    """Draw whether selectors give more bits to tiles with more edges, as the method assumes.

    Left: every tile by edge score and mean bits, and the median. Right: Spearman's rank correlation of
    score and bits for each layer.

    Args:
        scores: (N,) edge scores of observed tiles.
        bits: (N, L) bits of these tiles.
        layers: names of the L layers.
    """
    scores, bits = np.asarray(scores, dtype=np.float64), np.asarray(bits)
    figure = Figure(figsize=(9.5, 1.6 + 0.16 * max(len(layers), 16)), layout="constrained")
    cloud, bars = figure.subplots(1, 2, width_ratios=[1.7, 1])
    _draw_cloud(cloud, scores, bits.mean(axis=1))
    correlations = [_rank_correlation(scores, column) for column in bits.T]
    places = np.arange(len(layers))
    bars.barh(places, correlations, color=bit_color(5), height=0.75)
    bars.set_yticks(places, layers, fontsize=7)
    bars.tick_params(axis="y", length=0)
    bars.invert_yaxis()
    bars.axvline(0, color=FAINT, linewidth=0.8)
    bars.set_xlim(min(0, *correlations) - 0.05, 1)
    bars.margins(y=0.01)
    bars.set_xlabel("rank correlation by layer")
    plain(bars)
    bars.grid(visible=False, axis="y")
    return figure


def _draw_cloud(panel: Axes, scores: np.ndarray, mean_bits: np.ndarray) -> None:
    """Draw tiles by score and mean bits, and the median in up to 12 bins of equally many tiles."""
    panel.scatter(scores, mean_bits, s=12, alpha=0.35, color="#4c6fb1", linewidth=0)
    ends = np.unique(np.quantile(scores, np.linspace(0, 1, min(13, len(scores) // 8 + 2))))
    bins = np.clip(np.searchsorted(ends, scores, side="right") - 1, 0, max(len(ends) - 2, 0))
    filled = np.unique(bins)
    panel.plot(
        [np.median(scores[bins == b]) for b in filled],
        [np.median(mean_bits[bins == b]) for b in filled],
        color=bit_color(8),
        marker="o",
        markersize=4,
        linewidth=1.8,
        label="median",
    )
    panel.set_xlabel("edge score of the tile")
    panel.set_ylabel("mean bits of the tile")
    correlation = _rank_correlation(scores, mean_bits)
    panel.set_title(f"{len(scores)} tiles, rank correlation {correlation:.2f}", color=INK, fontsize=11)
    panel.legend(frameon=False, loc="lower right")
    plain(panel)


def _draw_trade_off(panel: Axes, rows: Sequence[Mapping[str, Any]], looks: Mapping[str, _Look]) -> None:
    """Draw the methods of one test set: points by FAB and PSNR, and lines without FAB."""
    points = [row for row in rows if row.get("fab") and row["fab"] <= WIDEST]
    across = [row for row in rows if row not in points]
    values = [row["psnr"] for row in points] or [row["psnr"] for row in across]
    spread = max(max(values) - min(values), 0.1)
    # a distant line would squeeze everything else, so it is mentioned in the title instead
    near = [row for row in across if abs(row["psnr"] - np.mean(values)) < 6 * spread]
    far = [row for row in across if row not in near]
    shown = values + [row["psnr"] for row in near]
    margin = 0.28 * max(max(shown) - min(shown), spread)
    panel.set_ylim(min(shown) - margin, max(shown) + 0.7 * margin)
    left = min([row["fab"] - 0.9 for row in points] + [WIDEST - 3.0])
    panel.set_xlim(left, WIDEST + 0.4)
    for row in near:
        look = looks[str(row["method"])]
        panel.axhline(row["psnr"], color=look.color, linestyle="--", linewidth=1)
        text = f"{look.label}  {row['psnr']:.2f} dB"
        _annotate(panel, text, (WIDEST + 0.4, row["psnr"]), (0, 3), color=look.color, ha="right")
    for row in points:
        look = looks[str(row["method"])]
        neighbours = [x for x in points if abs(x["fab"] - row["fab"]) < 1.2]
        above = len(neighbours) > 1 and row is max(neighbours, key=lambda x: (x["psnr"], x["fab"]))
        place = (row["fab"], row["psnr"])
        panel.scatter(*place, color=look.color, marker=look.marker, s=46, zorder=3)
        _annotate(
            panel,
            f"{look.label}  {row['psnr']:.2f} dB\n{row['fab']:.2f} bits",
            place,
            (0, 7 if above else -8),
            ha="right" if row["fab"] > WIDEST - 0.7 else "center",
            va="bottom" if above else "top",
            color=look.color,
        )
    notes = [f"{looks[str(row['method'])].label} {row['psnr']:.2f} dB, off the scale" for row in far]
    panel.set_title("   ".join(notes), loc="right", color=FAINT, fontsize=8.5)
    panel.set_xlabel("feature average bits (FAB)")
    panel.set_ylabel("PSNR on Y, dB")
    plain(panel)


def _annotate(
    panel: Axes, text: str, place: tuple[float, float], offset: tuple[int, int], **style: Any
) -> None:
    """Write text at an offset in points from a place in data coordinates."""
    outline = [withStroke(linewidth=2.5, foreground="white")]  # a line may run through the text
    panel.annotate(
        text, place, offset, textcoords="offset points", fontsize=8.5, path_effects=outline, **style
    )


def _method_looks(methods: Sequence[str]) -> dict[str, _Look]:
    """Return the look of each method; unknown methods get colours in order of appearance."""
    looks = dict(_METHODS)
    for method in methods:
        if method not in looks:
            looks[method] = _Look(method, _OTHER_COLORS[len(looks) % len(_OTHER_COLORS)])
    return looks


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 where ``x`` or ``y`` is constant, which has none."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    from scipy.stats import spearmanr  # slow to import, and table_picture does without it

    return float(spearmanr(x, y).statistic)
