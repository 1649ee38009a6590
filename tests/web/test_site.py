"""The page without a browser: models, jobs of several pages, pictures, bit map, model card."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cabm.checkpoints.find import packaged_models
from cabm.checkpoints.model_directory import load_model
from cabm.errors import InputError
from cabm.upscaling.request import UpscaleRequest
from cabm.web import panels, pictures
from cabm.web.bit_map import bit_map
from cabm.web.jobs import Phase, Progress
from cabm.web.model_card import card, trade_off_figure
from cabm.web.models import Models
from cabm.web.site import Limits, Site, output_size
from tests.conftest import REPOSITORY
from tests.upscaling.helpers import photo, tiny_model
from tests.web.conftest import save_photo


def upscaled(site, path, **options):
    request = UpscaleRequest(model=next(iter(site.models.paths)), file_format="png", **options)
    job = site.start(site.visits["one"], path, request)
    assert job.wait().phase is Phase.DONE, job.wait().error
    return job.result


def test_named_models_come_first_then_the_default_then_the_packaged_ones(model):
    names = list(Models([model]).paths)
    assert names[:2] == [str(model), "edsr_x4/cabm"]
    assert set(names[1:]) == set(packaged_models())
    assert next(iter(Models().paths)) == "edsr_x4/cabm"
    with pytest.raises(InputError, match="no such model directory"):
        Models([model / "none"])


def test_a_page_cannot_name_another_directory(site, picture, tmp_path):
    other = tiny_model(tmp_path / "other")
    with pytest.raises(InputError, match="this page offers"):
        site.start(site.visits["one"], picture, UpscaleRequest(model=str(other)))
    with pytest.raises(InputError, match="this page offers"):
        site.describe(str(other))


def test_few_models_stay_in_memory(tmp_path):
    models = Models([tiny_model(tmp_path / str(number)) for number in range(3)])
    names = list(models.paths)[:3]

    def loaded(name):
        return models.upscaler(name, UpscaleRequest(model=models.path(name), engine="float"))

    first = loaded(names[0])
    assert loaded(names[0]) is first
    loaded(names[1])
    loaded(names[0])
    loaded(names[2])  # names[1] was used longest ago
    assert loaded(names[0]) is first


def test_a_job_goes_by_the_limits_of_the_site(model, picture, tmp_path):
    site = Site(Models([model]), Limits(max_pixels=100 * 100), tmp_path / "site")
    with pytest.raises(InputError, match=r"^a photo\.jpg: 130 x 101 pixels"):
        site.opened(picture)


def test_files_of_a_page_go_with_its_next_job_and_when_it_is_closed(site, picture):
    first, folder = upscaled(site, picture), site.visits.root
    assert first.upscaled.task.output.name == "a photo_x2.png"
    assert len(list(folder.iterdir())) == 1
    second = upscaled(site, picture)
    assert not first.upscaled.task.output.exists() and second.upscaled.task.output.exists()
    site.visits.close("another")
    assert second.upscaled.task.output.exists()
    site.visits.close("one")
    assert list(folder.iterdir()) == []


def test_closing_a_page_stops_its_job(site, tmp_path):
    path = save_photo(tmp_path / "large.jpg", photo(1000, 1000))
    name = next(iter(site.models.paths))
    job = site.start(site.visits["one"], path, UpscaleRequest(model=name))
    while job.wait(0.001).done < 2:
        assert not job.ended
    site.visits.close_all()
    assert job.ended and job.wait().phase is Phase.CANCELLED
    assert list(site.visits.root.iterdir()) == [] and len(site.visits) == 0


def test_a_job_of_a_page_that_is_gone_does_not_run(site, picture):
    visit = site.visits["one"]
    site.visits.close("one")
    job = site.start(visit, picture, UpscaleRequest(model=next(iter(site.models.paths))))
    assert job.wait().phase is Phase.CANCELLED


@pytest.mark.parametrize(
    ("asked", "size", "name"),
    [
        (("scale", None, None), (202, 260), "x2"),
        (("factor", 1.5, None), (152, 195), "x1.5"),
        (("width", 200.0, None), (155, 200), "w200"),
        (("both", 150.0, 90.0), (90, 150), "150x90"),
        (("max_side", 100.0, None), (78, 100), "max100"),
    ],
)
def test_a_result_has_the_size_that_was_asked_for(site, picture, asked, size, name):
    shown = upscaled(site, picture, size=output_size(*asked, twice=False))
    assert shown.pictures.size == size == Image.open(shown.pictures.after).size[::-1]
    assert shown.upscaled.task.output.name == f"a photo_{name}.png"
    if asked[0] == "max_side":  # smaller than the image: the network does not run
        with pytest.raises(InputError, match="0 tiles"):
            site.detail(shown, 0)
    else:
        assert site.detail(shown, 0).size == size


@pytest.mark.parametrize("asked", [("factor", None, None), ("both", 10.0, None), ("width", 0.0, None)])
def test_a_size_without_numbers_is_one_line(asked):
    with pytest.raises(InputError, match="give"):
        output_size(*asked, twice=False)


def test_pictures_have_every_pixel_of_a_small_result(site, picture):
    shown = upscaled(site, picture)
    assert shown.pictures.whole and shown.pictures.size == (202, 260)
    result = np.asarray(Image.open(shown.upscaled.task.output))
    np.testing.assert_array_equal(np.asarray(Image.open(shown.pictures.after)), result)
    bicubic = np.asarray(Image.open(picture).resize((260, 202), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(bicubic - np.asarray(Image.open(shown.pictures.before))).mean() < 0.5


def test_pictures_of_a_large_result_are_scaled(site, picture, monkeypatch):
    monkeypatch.setattr(pictures, "SHOWN_PIXELS", 10_000)
    shown = upscaled(site, picture).pictures
    assert shown.size == (202, 260) and not shown.whole
    assert 9_000 < shown.shown[0] * shown.shown[1] <= 10_000
    for path in (shown.before, shown.after):
        assert Image.open(path).size == shown.shown[::-1]
    assert "260 × 202" in panels.shown_as(shown)


@pytest.mark.parametrize("tile", [0, 11, -1])
def test_a_detail_has_the_pixels_of_the_result_around_the_tile(site, tmp_path, monkeypatch, tile):
    monkeypatch.setattr(pictures, "_DETAIL", (80, 120))
    shown = upscaled(site, save_photo(tmp_path / "p.png", photo(101, 130)))
    plan = shown.upscaled.report.plan
    tile %= len(plan)
    detail = site.detail(shown, tile)
    result = np.asarray(Image.open(shown.upscaled.task.output))
    piece = np.asarray(Image.open(detail.after))
    assert piece.shape == (80, 120, 3) == (*detail.size, 3)
    # the piece occurs in the result once, and covers the middle of the tile
    windows = np.lib.stride_tricks.sliding_window_view(result, piece.shape)[:, :, 0]
    ((y, x),) = np.argwhere((windows == piece).all(axis=(2, 3, 4)))
    y0, x0, y1, x1 = plan.boxes[tile]
    assert y <= y0 + y1 <= y + 80 and x <= x0 + x1 <= x + 120
    assert Image.open(detail.before).size == (120, 80)
    with pytest.raises(InputError, match="tiles"):
        site.detail(shown, len(plan))
    site.visits.close("one")
    with pytest.raises(InputError, match="upscale the image again"):
        site.detail(shown, tile)


def areas(path_data):
    """Return the areas of the rectangles of a path."""
    numbers = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H[\d.]+z", path_data)
    return [(float(x1) - float(x0)) * (float(y1) - float(y0)) for x0, y0, x1, y1 in numbers]


def test_the_bit_map_covers_the_image_and_has_the_numbers_of_every_tile(site, tmp_path):
    report = upscaled(site, save_photo(tmp_path / "p.png", photo(150, 300))).upscaled.report
    html = bit_map(report, "data:,")
    bits = [areas(data) for data in re.findall(r'<path class="bits"[^>]* d="([^"]*)"', html)]
    bypassed = areas(re.search(r'<path class="bypassed" d="([^"]*)"', html)[1])
    assert len(bits) > 1 and bypassed
    assert sum(map(sum, bits)) + sum(bypassed) == pytest.approx(150 * 300)
    tiles = json.loads(unescape(re.search(r'data-tiles="([^"]*)"', html)[1]))
    assert (len(tiles["rows"]) - 1) * (len(tiles["columns"]) - 1) == len(report.plan)
    assert tiles["rows"][0] == tiles["columns"][0] == 0
    assert (tiles["rows"][-1], tiles["columns"][-1]) == (150, 300)
    np.testing.assert_allclose(tiles["score"], report.scores, atol=0.006)
    np.testing.assert_allclose(tiles["bits"], report.bits.mean(axis=1), atol=0.006)
    np.testing.assert_allclose(tiles["ms"], report.tile_seconds * 1000, atol=0.06)
    np.testing.assert_allclose(tiles["bypassed"], report.parts.share * 100, atol=0.51)


def test_a_model_without_bits_has_a_map_of_times(tmp_path, picture):
    site = Site(Models([tiny_model(tmp_path / "float", "float")]), Limits(), tmp_path / "site")
    report = upscaled(site, picture).upscaled.report
    html = bit_map(report, "data:,")
    assert 'class="bits"' not in html and "figcaption" not in html
    tiles = json.loads(unescape(re.search(r'data-tiles="([^"]*)"', html)[1]))
    assert tiles["bits"] == tiles["score"] == [] and len(tiles["ms"]) == len(report.plan)


def test_names_and_errors_of_visitors_are_no_markup(site, tmp_path):
    path = save_photo(tmp_path / "<img src=x onerror=alert(1)>.jpg", photo(30, 30))
    shown = upscaled(site, path)
    for html in (
        panels.loaded(path.name, 30, 30, 1),
        panels.results(shown.upscaled, shown.pictures, "file="),
        panels.failed(f"{path.name}: bad"),
    ):
        assert "<img" not in html and "&lt;img" in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (12.4, "12 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7810, "2 h 10 min")],
)
def test_durations(seconds, text):
    assert panels.duration(seconds) == text


def test_progress_says_tiles_share_and_time_left():
    html = panels.progress_bar(Progress(Phase.UPSCALING, 1200, 4800, 75.0))
    assert "1,200 of 4,800 tiles" in html and "about 1 min 15 s left" in html and "width:25.0%" in html


def test_the_packaged_results_are_those_of_the_docs():
    path = packaged_models()["edsr_x4/cabm"].parent / "quality.json"
    sets = json.loads(path.read_text())["results"]["tiles"]
    text = (REPOSITORY / "docs" / "results.md").read_text()
    for name, methods in sets.items():
        body = text.partition(f"**{name}**")[2].partition("**")[0]
        for row in methods.values():
            fab = f"{row['fab']:.2f}" if "fab" in row else ""
            assert f"| {row['psnr']:.3f} | {row['ssim']:.4f} | {fab} |" in body, (name, row)


def test_a_model_is_described_with_its_figures(site, model):
    text, table, trade_off = site.describe("edsr_x4/cabm")
    assert "Training images" in text and "edsr x4" in text and "stride 94" in text
    assert Image.open(table).width > 800 and Image.open(trade_off).width > 800
    text, table, trade_off = site.describe(str(model))
    assert "| epochs | 0 |" in text and table is not None and trade_off is None


def test_facts_of_a_model_are_no_markup(tmp_path):
    loaded = load_model(tiny_model(tmp_path / "m"))
    loaded.config.provenance["stage"] = "<script>|\n# heading"
    text = card(loaded, "m")
    assert "<script>" not in text and "\n# heading" not in text


def test_damaged_results_are_one_line(tmp_path):
    loaded = load_model(tiny_model(tmp_path / "models" / "cabm"))
    assert trade_off_figure(loaded) is None
    results = tmp_path / "results" / "quality.json"
    results.parent.mkdir()
    results.write_text('{"results": {"tiles": {"mine": {"cabm": {"psnr": "high"}}}}}')
    with pytest.raises(InputError, match=r"quality\.json: .*psnr"):
        trade_off_figure(loaded)
    results.write_text('{"results": {"tiles": {"mine": {"cabm": {"psnr": 30.1, "fab": 5.0}}}}}')
    assert trade_off_figure(loaded) is not None


def test_assets_are_files_of_the_package():
    assets = Path(panels.__file__).parent / "assets"
    assert {path.name for path in assets.iterdir()} == {"bit_map.js", "page.css", "paste.js"}
