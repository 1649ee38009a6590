from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from cabm.reporting.bits import edge_hypothesis, psnr_against_fab, table_picture
from cabm.reporting.overlays import bit_map_overlay, crops_side_by_side, detailed_boxes
from cabm.tables.bypass import Bypass
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.parts import TileParts
from cabm.tiling.plan import plan


def drawn(figure):
    """Render, and return all text of the figure."""
    assert isinstance(figure, Figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    assert pixels[..., :3].std() > 1
    return "\n".join(text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text")))


def table(**changes):
    fields = {
        "backbone": "edsr",
        "scale": 4,
        "search_space": (4, 6, 8),
        "layers": ("body.0.a", "body.0.b"),
        "tile": 96,
        "stride": 94,
        "strategy": "monotone",
        "thresholds": [0.5, 3.0, 7.0],
        "rows": [[4, 4], [4, 6], [8, 8]],
    }
    return EdgeToBitTable(**fields | changes)


def test_trade_off_names_every_set_and_method():
    rows = [
        {"set": name, "method": method, "psnr": psnr, "fab": fab}
        for name in ("Set5", "B100")
        for method, psnr, fab in [
            ("bicubic", 28.43, None),
            ("full_precision", 32.09, 32),
            ("pams", 32.02, 8.0),
            ("cabm", 31.93, 5.8),
            ("mine", 31.9, 5.0),
        ]
    ]
    text = drawn(psnr_against_fab(rows))
    for expected in ("Set5", "B100", "PAMS  32.02 dB\n8.00 bits", "CABM  31.93", "mine  31.90"):
        assert expected in text
    assert "float  32.09 dB" in text
    assert "bicubic 28.43 dB, off the scale" in text


def test_trade_off_of_bicubic_alone():
    text = drawn(psnr_against_fab([{"set": "a", "method": "bicubic", "psnr": 20.0}]))
    assert "bicubic  20.00 dB" in text


@pytest.mark.parametrize(
    ("picture", "legend"),
    [
        (table(), ["4 bits", "6 bits", "8 bits"]),
        (table(bypass=Bypass(part=16, threshold=1.5)), ["bypass below an edge peak of 1.5", "4 bits"]),
    ],
)
def test_table_picture(picture, legend):
    text = drawn(table_picture(picture))
    for expected in [*legend, "body.0.b", "edge score", "monotone"]:
        assert expected in text
    assert ("bypass" in text) == (picture.bypass is not None)


def test_one_row_is_drawn_as_bars_without_edge_scores():
    figure = table_picture(table(strategy="constant", thresholds=[0.0], rows=[[4, 8]]))
    text = drawn(figure)
    assert "one row for all tiles, FAB 6.00" in text and "edge score" not in text
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars == [4, 8]


@pytest.mark.parametrize("size", [(60, 90), (1, 1), (5, 300)])
@pytest.mark.parametrize("factor", [1, 2])
def test_bit_map_over_input_or_output(size, factor):
    tile_plan = plan(*size, 32, 30)
    fab = np.linspace(4, 8, len(tile_plan))
    bypassed = np.zeros((len(tile_plan), 1, 1), bool)
    bypassed[0] = True
    parts = TileParts(32, tile_plan.tile_height, tile_plan.tile_width, bypassed)
    image = np.random.default_rng(0).integers(0, 256, (size[0] * factor, size[1] * factor, 3))
    text = drawn(bit_map_overlay(image.astype(np.uint8), tile_plan, fab, parts))
    assert f"{len(tile_plan)} tiles" in text
    assert f"{1 / len(tile_plan):.0%} bypassed" in text


def test_crops_carry_their_psnr():
    random = np.random.default_rng(0)
    original = random.integers(0, 256, (80, 120, 3), dtype=np.uint8)
    images = {"HR": original, "bicubic": 255 - original, "CABM": original}
    text = drawn(crops_side_by_side(images, detailed_boxes(original, 32, 2)))
    assert text.count("HR") == 2
    assert "CABM  inf dB" in text


def test_detailed_boxes_find_the_detail():
    image = np.zeros((100, 200, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image[60:80, 140:160] = noise
    y0, x0, y1, x1 = detailed_boxes(image, 20, 1)[0]
    assert (y0, x0, y1, x1) == (60, 140, 80, 160)
    boxes = detailed_boxes(image, 40, 20)
    covered = np.zeros(image.shape[:2], int)
    for y0, x0, y1, x1 in boxes:
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1
    assert len(boxes) > 4
    assert detailed_boxes(image[:8], 40, 3)[0][2] == 8


def test_edge_hypothesis_shows_the_rank_correlation():
    random = np.random.default_rng(0)
    scores = np.round(random.gamma(2, 7, 300), 1)
    bits = np.clip(np.round((scores / 10)[:, None] + random.normal(0, 1, (300, 5))), 2, 8)
    expected = spearmanr(scores, bits.mean(axis=1)).statistic
    text = drawn(edge_hypothesis(scores, bits, [f"layer{i}" for i in range(5)]))
    assert f"300 tiles, rank correlation {expected:.2f}" in text
    assert "layer4" in text


def test_edge_hypothesis_of_bits_that_never_change():
    text = drawn(edge_hypothesis([1.0, 2.0], np.full((2, 3), 8), ["a", "b", "c"]))
    assert "rank correlation 0.00" in text
    drawn(edge_hypothesis([1.0], [[8, 8, 4]], ["a", "b", "c"]))


def test_no_global_figures_are_made():
    table_picture(table())
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
