from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cabm.cli.main import app
from cabm.errors import InputError
from cabm.evaluation.comparison import write_rows
from cabm.files import write_json
from cabm.imaging.images import write_image
from cabm.reporting.inputs import read_report_data
from cabm.reporting.page import compared, headline, whole_curve, write_report
from cabm.reporting.tables import decimal, duration, image_table, percent, result_groups
from cabm.tables.bypass import Bypass
from cabm.tables.table import EdgeToBitTable
from tests.conftest import REPOSITORY

LAYERS = ("body.0.conv1", "body.0.conv2")
FORBIDDEN_TAGS = {"iframe", "object", "embed", "base", "audio", "video"}


class Page(HTMLParser):
    """What a page would load, its ids, and its text outside of style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.policy = ""
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.open.append(tag)
        self.addresses += [
            str(given[name]) for name in ("src", "href", "srcset", "action") if name in given
        ]
        if "id" in given:
            self.ids.append(str(given["id"]))
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(given["content"])

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open[-1:]):
            self.words.append(data)


def result(psnr: float, bitops: float | None = None, **more: float) -> dict[str, float]:
    row = {"psnr": psnr, "ssim": 0.8, "seconds": 1.25, **more}
    return row if bitops is None else row | {"bitops_image_T": bitops, "bitops_tile_T": 1.5 * bitops}


def quality() -> dict[str, Any]:
    rows = {
        "bicubic": result(23.14),
        "full_precision": result(26.04, 103.2),
        "pams": result(26.00, 8.0),
        "cadyq": result(25.95, 6.0, fab=6.02, bypassed=0.0),
        "cabm": result(25.96, 5.0, fab=5.61, bypassed=0.083),
    }
    results = {"tiles": {"Set5": rows, "Urban100": rows}, "whole": {"Set5": rows}}
    protocol = {"color": "Y of YCbCr", "shave": 4}
    return {"protocol": protocol, "environment": {"processor": "Abacus, 2 threads"}, "results": results}


def model_config(kind: str, stage: str) -> dict[str, Any]:
    settings = {"steps": 60, "batch_size": 16, "patch": 24, "learning_rate": 5e-5}
    return {
        "format": "cabm.model/1",
        "backbone": "edsr",
        "scale": 4,
        "options": {"num_features": 64, "num_blocks": 16},
        "precision": {"kind": kind, "search_space": [4, 6, 8], "weight_bits": 8},
        "weights_sha256": stage.ljust(64, "0"),
        "provenance": {
            "stage": stage,
            "version": "0.1.0",
            "inputs": {"start": "ab" * 32},
            "settings": settings,
        },
    }


def small_table() -> EdgeToBitTable:
    return EdgeToBitTable(
        backbone="edsr",
        scale=4,
        search_space=(4, 6, 8),
        layers=LAYERS,
        tile=96,
        stride=94,
        strategy="lowest",
        thresholds=np.array([0.0, 3.2, 20.0]),
        rows=np.array([[4, 4], [4, 6], [8, 8]]),
        bypass=Bypass(part=16, threshold=3.2, share=0.07, loss_db=0.004),
    )


def write_project(project: Path, *, image: str = "baby") -> Path:
    """Write what a finished pipeline leaves, in small."""
    shutil.copy(REPOSITORY / "params.yaml", project / "params.yaml")
    results = project / "results"
    write_json(results / "quality.json", quality())
    rows = [
        {
            "protocol": protocol,
            "set": "Set5",
            "method": method,
            "image": name,
            "psnr": psnr,
            "ssim": 0.81,
            "fab": fab,
            "bypassed": 0.5 if fab else 0.0,
            "tiles": 4,
            "seconds": 0.5,
        }
        for protocol in ("tiles", "whole")
        for method, fab in (("bicubic", ""), ("cabm", 5.5))
        for name, psnr in ((image, 31.5), ("bird", 29.25))
    ]
    write_rows(results / "images.csv", rows)
    steps = {"full_precision": "float", "pams": "pams", "cadyq": "cadyq", "cabm": "cabm"}
    for stage, kind in steps.items():
        write_json(project / "models" / stage / "config.json", model_config(kind, stage))
        measured = {"psnr": 28.5, "ssim": 0.8} | ({"fab": 5.7} if stage in ("cadyq", "cabm") else {})
        timing = {"seconds": 135.0, "patches_per_second": 64.25}
        write_json(project / "metrics" / f"{stage}.json", {"validation": measured})
        write_json(project / "timing" / f"{stage}.json", timing)
        curve = [
            {"step": 10, "train_l1": 20.0, "validation_psnr": ""},
            {"step": 20, "train_l1": 6.5, "validation_psnr": 28.5},
        ]
        write_rows(project / "curves" / f"{stage}.csv", curve)
    counts = {"images": 2, "megapixels": 0.5}
    write_json(project / "metrics" / "prepare.json", {"validation": counts})
    write_json(project / "metrics" / "edge_to_bit.json", {"tiles": 9})
    write_json(project / "metrics" / "evaluate.json", {"protocol": {}})
    write_json(project / "timing" / "prepare.json", {"seconds": 3.2})
    write_json(project / "timing" / "edge_to_bit.json", {"seconds": 2.0, "tiles_per_second": 4.5})
    write_json(project / "timing" / "evaluate.json", {"seconds": 7260.0})
    small_table().save(project / "tables" / "edge_to_bit.json")
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    for name in ("edge_to_bit", "edge_hypothesis", "bit_map", "crops"):
        write_image(results / "figures" / f"{name}.png", pixels)
    versions = {}
    for caption, psnr in (("original", None), ("bicubic", 24.1), ("float", 26.2), ("CABM", 26.1)):
        write_image(results / "crops" / f"0_{caption}.png", pixels)
        versions[caption] = {"file": f"0_{caption}.png", "psnr": psnr}
    listed = {"image": f"Set5/{image}", "crops": [{"box": [0, 0, 8, 8], "versions": versions}]}
    write_json(results / "crops" / "crops.json", listed)
    return project


def report(project: Path) -> Page:
    return Page(write_report(project, project / "out").read_text())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes time, where a test looks at words only."""
    monkeypatch.setattr("cabm.reporting.page.svg_uri", lambda figure: "data:,")


def test_page_loads_nothing_from_elsewhere(project: Path) -> None:
    page = report(project)
    assert page.addresses
    for address in page.addresses:
        assert address.startswith(("data:image/", "data:,", "#")), address[:80]
    for target in (address[1:] for address in page.addresses if address.startswith("#")):
        assert target in page.ids
    assert not FORBIDDEN_TAGS & set(page.tags)
    assert "default-src 'none'" in page.policy and "img-src data:" in page.policy
    style = (REPOSITORY / "cabm" / "reporting" / "templates" / "report.css").read_text()
    script = (REPOSITORY / "cabm" / "reporting" / "templates" / "report.js").read_text()
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", style + script)


@pytest.mark.usefixtures("undrawn")
def test_page_shows_the_measurements(project: Path) -> None:
    text = report(project).text
    assert "0.08 dB below float" in text and "62 % of the bit operations of PAMS" in text
    for word in ("25.96", "5.61", "8.3 %", "103", "Urban100", "Abacus, 2 threads", "Whole image"):
        assert word in text, word
    for word in ("2 min 15 s", "64.2 patches/s", "4.50 tiles/s", "2 h 01 min", "3.2 s"):
        assert word in text, word
    assert "parts of 16 pixels with an edge peak below 3.2: 7.0 % of the validation pixels" in text
    assert "a loss of 0.004 dB" in text
    assert "Y of YCbCr" in text and "num_features 64, num_blocks 16" in text
    assert "cadyq00" in text and "abababab" in text
    assert "selector_learning_rate" in text
    assert "No " not in text.replace("No crops", "No ")


def test_controls_are_in_the_table_and_not_in_the_figure(
    monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    measured = quality()
    rows = measured["results"]["tiles"]["Set5"]
    rows["cabm_shuffled"] = rows["cabm"]
    write_json(project / "results" / "quality.json", measured)
    drawn: list[str] = []
    monkeypatch.setattr("cabm.reporting.page.svg_uri", lambda figure: "data:,")
    monkeypatch.setattr(
        "cabm.reporting.page.psnr_against_fab", lambda points: drawn.extend(p["method"] for p in points)
    )
    assert "CABM, rows shuffled" in report(project).text
    assert "cabm" in drawn
    assert "cabm_shuffled" not in drawn


def test_the_same_files_give_the_same_bytes(project: Path) -> None:
    first = write_report(project, project / "a").read_bytes()
    assert write_report(project, project / "b" / "page.html").read_bytes() == first


@pytest.mark.usefixtures("undrawn")
def test_names_from_files_are_only_text(tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script>'
    page = report(write_project(tmp_path, image=hostile))
    assert hostile in page.text
    assert page.tags.count("script") == 1


@pytest.mark.usefixtures("undrawn")
def test_tracking_settings_stay_private(project: Path) -> None:
    params = (project / "params.yaml").read_text()
    secret = "postgresql://me:hunter2@db/runs"
    (project / "params.yaml").write_text(params.replace("tracking:\n", f"tracking:\n  uri: {secret}\n", 1))
    assert "hunter2" in (project / "params.yaml").read_text()
    assert "hunter2" not in write_report(project, project / "out").read_text()


PIECES = [
    ("results", "No results yet."),
    ("results/crops", None),
    ("results/figures", "No bit map yet."),
    ("results/quality.json", "Not evaluated yet. Trained so far: float, PAMS, CADyQ, CABM."),
    ("results/images.csv", "No per-image results yet."),
    ("metrics", "No training metrics yet."),
    ("metrics/pams.json", "without metrics: pams."),
    ("curves", "No training curves yet."),
    ("models", "No models yet."),
    ("tables", "No table yet."),
    ("params.yaml", "There is no params.yaml"),
]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("piece", "words"), PIECES, ids=[piece for piece, _ in PIECES])
def test_missing_parts_are_named(project: Path, piece: str, words: str | None) -> None:
    path = project / piece
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    page = report(project)
    if words is not None:
        assert words in page.text.replace(" .", ".")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kept", ["results", "metrics", "curves", "models", "tables"])
def test_one_part_alone_makes_a_page(project: Path, kept: str) -> None:
    for path in project.iterdir():
        if path.name != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "<h1>" in write_report(project, project / "out").read_text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("removed", ["cabm", "pams", "full_precision", "bicubic", "cadyq"])
def test_methods_may_be_missing(project: Path, removed: str) -> None:
    found = quality()
    for sets in found["results"].values():
        for set_name, rows in sets.items():
            sets[set_name] = {name: row for name, row in rows.items() if name != removed}
    write_json(project / "results" / "quality.json", found)
    assert "Urban100" in report(project).text


BROKEN: list[tuple[str, str, str]] = [
    ("results/quality.json", "{", "not valid JSON"),
    ("results/quality.json", '{"results": {"tiles": {"Set5": {"cabm": {"psnr": "high"}}}}}', "psnr"),
    ("results/quality.json", '{"results": {"tiles": {"Set5": {"cabm": {"psnr": NaN}}}}}', "psnr"),
    ("results/quality.json", "[]", "quality.json"),
    ("results/images.csv", "protocol,set\ntiles,Set5\n", "method"),
    ("results/images.csv", "Größe\n1\n", "not a CSV file"),
    ("results/figures/bit_map.png", "GIF89a", "not a PNG"),
    ("results/crops/crops.json", '{"image": "a", "crops": [{"box": [1], "versions": {}}]}', "crops.json"),
    ("results/crops/0_CABM.png", "", "not a PNG"),
    ("metrics/pams.json", '{"validation": 3}', "metrics/pams.json"),
    ("curves/pams.csv", "step,train_l1\n1,much\n", "line 2"),
    ("curves/pams.csv", "train_l1\n1\n", "no step"),
    ("curves/pams.csv", "step\n1,2,3\n", "line 2"),
    ("models/pams/config.json", "{}", "config.json"),
    ("tables/edge_to_bit.json", "{}", "edge_to_bit.json"),
    ("params.yaml", "surprise: 1\n", "surprise"),
]


@pytest.mark.parametrize(("path", "content", "message"), BROKEN)
def test_damaged_files_get_one_line(project: Path, path: str, content: str, message: str) -> None:
    (project / path).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        write_report(project, project / "out")
    assert "\n" not in str(caught.value)
    assert not (project / "out").exists()


def test_crops_name_files_of_their_own_folder_only(project: Path) -> None:
    listed = json.loads((project / "results" / "crops" / "crops.json").read_text())
    listed["crops"][0]["versions"]["CABM"]["file"] = "../figures/bit_map.png"
    write_json(project / "results" / "crops" / "crops.json", listed)
    with pytest.raises(InputError, match=r"crops\.json"):
        write_report(project, project / "out")


def test_a_missing_crop_gets_one_line(project: Path) -> None:
    (project / "results" / "crops" / "0_float.png").unlink()
    with pytest.raises(InputError, match=r"0_float\.png: no such image"):
        write_report(project, project / "out")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run dvc repro first"):
        read_report_data(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        read_report_data(tmp_path / "nowhere")


@pytest.mark.usefixtures("undrawn")
def test_curves_without_rows_draw_nothing(project: Path) -> None:
    for path in (project / "curves").iterdir():
        path.write_text("step\n")
    assert "No training curves yet." in report(project).text


def test_a_curve_ends_with_the_validation_of_its_result(project: Path) -> None:
    curve = [{"step": 10, "train_l1": 20.0, "validation_psnr": 27.0}, {"step": 20, "train_l1": 6.5}]
    names = ["step", "train_l1", "validation_psnr"]
    write_rows(
        project / "curves" / "pams.csv", [{name: row.get(name, "") for name in names} for row in curve]
    )
    rows = whole_curve(read_report_data(project), "pams")
    assert [row["validation_psnr"] for row in rows] == [27.0, 28.5]


def test_headline_when_every_tile_is_bypassed(project: Path) -> None:
    found = quality()
    row = found["results"]["tiles"]["Urban100"]["cabm"] | {"bypassed": 1.0}
    row.pop("fab")
    found["results"]["tiles"]["Urban100"]["cabm"] = row
    write_json(project / "results" / "quality.json", found)
    sentence = headline(read_report_data(project)).replace("\u00a0", " ")
    assert sentence == "Urban100: CABM bypasses every tile and reaches 25.96 dB, all bicubic."


@pytest.mark.parametrize(
    ("difference", "words"), [(0.004, "equal to"), (-0.08, "0.08 dB below"), (1.2, "1.20 dB above")]
)
def test_differences_in_words(difference: float, words: str) -> None:
    assert compared(difference) == words


def test_numbers_as_text() -> None:
    assert [decimal(v, 2) for v in (None, 1.005, float("inf"))] == ["–", "1.00", "–"]
    assert [decimal(v, 3, significant=True) for v in (0.0412, 5.04, 103.2, 0)] == [
        "0.0412",
        "5.04",
        "103",
        "0",
    ]
    assert [percent(v) for v in (0, 0.004, 0.083, 0.0996, 1)] == ["0 %", "0.4 %", "8.3 %", "10 %", "100 %"]
    assert [duration(v) for v in (None, 0.42, 59.6, 61, 3600, 7325)] == [
        "–",
        "0.4 s",
        "60 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 02 min",
    ]


def test_bit_operations_are_compared_with_eight_bits(project: Path) -> None:
    data = read_report_data(project)
    (group, _) = result_groups(data.quality.results["tiles"])
    shares = {row["method"]: row["cells"][5] for row in group["rows"]}
    assert shares == {"bicubic": "–", "float": "12.9 ×", "PAMS": "100 %", "CADyQ": "75 %", "CABM": "62 %"}
    assert [row["method"] for row in group["rows"] if row["ours"]] == ["CABM"]


def test_image_table_has_a_row_per_image_and_protocol(project: Path) -> None:
    table = image_table(read_report_data(project).images)
    assert table["heads"][:5] == ["set", "image", "bicubic", "CABM", "FAB CABM"]
    assert {name: len(rows) for name, rows in table["protocols"].items()} == {"tiles": 2, "whole": 2}
    row = table["protocols"]["tiles"][0]
    assert row[:5] == [("Set5", None), ("baby", None), ("31.50", 31.5), ("31.50", 31.5), ("5.50", 5.5)]
    with (project / "results" / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8


@pytest.mark.usefixtures("undrawn")
def test_command(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    done = CliRunner().invoke(app, ["report", "-o", "shared/"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("wrote shared/report.html, ")
    assert (project / "shared" / "report.html").read_text().startswith("<!doctype html>")
    assert CliRunner().invoke(app, ["report", "-o", "page.html", "--project", "."]).exit_code == 0
    assert (project / "page.html").exists()


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = running.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.mark.slow
def test_page_in_a_browser(project: Path, browser: Any) -> None:
    path = write_report(project, project / "out")
    page = browser.new_page(viewport={"width": 400, "height": 800})
    requested, complaints = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")

    slider = page.locator(".compare input").first
    slider.scroll_into_view_if_needed()
    place = slider.bounding_box()
    middle = place["y"] + place["height"] / 2
    page.mouse.move(place["x"] + place["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(place["x"] + 1, middle)
    page.mouse.up()
    at = page.locator(".compare").first.evaluate("frame => frame.style.getPropertyValue('--at')")
    assert float(at.rstrip("%")) < 15
    page.locator("select[data-side=right]").select_option("original")
    assert page.locator(".compare img.right").first.get_attribute("data-version") == "original"
    assert page.locator(".tag.left").first.inner_text() == "bicubic 24.10 dB"

    def first_image() -> str:
        return page.locator(
            "#image-table tbody:not([hidden]) tr:not([hidden]) td:nth-child(2)"
        ).first.inner_text()

    page.locator("#image-table th button", has_text="bicubic").click()
    assert first_image() == "bird"
    page.locator("#image-table th button", has_text="bicubic").click()
    assert first_image() == "baby"
    page.locator("#image-filter").fill("bird")
    assert first_image() == "bird"
    page.locator("#protocol-choice").select_option("whole")
    assert page.locator("#image-table tbody:not([hidden])").get_attribute("data-protocol") == "whole"
    assert complaints == []
