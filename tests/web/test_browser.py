"""The page in Chromium, wide and narrow."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cabm.upscaling.upscaler import Upscaler
from tests.conftest import REPOSITORY
from tests.upscaling.helpers import photo, tiny_model
from tests.web.conftest import save_photo
from tests.web.test_server import served

pytest.importorskip("gradio", reason="pip install -e '.[web]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test-servers]'")
pytestmark = pytest.mark.slow

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SIZES = {"wide": (1400, 1000), "narrow": (390, 844)}
WAIT_MS = 120_000
SCREENSHOTS = REPOSITORY / "build" / "screenshots" / "web"


class Page:
    """One open page, everything that it requested, and everything that it complained about."""

    def __init__(self, browser: Any, url: str, size: str = "wide") -> None:
        width, height = SIZES[size]
        self.size, self.url = size, url
        self.tab = browser.new_page(viewport={"width": width, "height": height})
        self.tab.set_default_timeout(WAIT_MS)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(url)
        self.tab.locator("#go").wait_for()

    def upload(self, path: Path) -> None:
        self.tab.set_input_files("#image input[type=file]", path)
        self.tab.locator("#status .note:not(.idle)").wait_for()

    def upscale(self, path: Path) -> None:
        self.upload(path)
        self.tab.locator("#go").click()
        self.tab.locator("#status .download").wait_for()
        self.tab.locator(".bit-map svg").wait_for()

    def choose(self, label: str, option: str) -> None:
        self.tab.get_by_label(label, exact=True).locator("visible=true").first.click()
        self.tab.get_by_role("option", name=option, exact=True).click()

    def download(self, to: Path) -> Path:
        with self.tab.expect_download() as waiting:
            self.tab.locator("#status a.button").click()
        waiting.value.save_as(to / waiting.value.suggested_filename)
        return to / waiting.value.suggested_filename

    def shoot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.tab.wait_for_timeout(500)
        self.tab.screenshot(path=SCREENSHOTS / f"{name}-{self.size}.png", full_page=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium; apt install chromium, or name one in CHROMIUM")
    with sync_api.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page with two models: one that computes, and one that bypasses everything, which is fast."""
    fast = tiny_model(tmp_path_factory.mktemp("models") / "fast", bypass=1e9, part=24)
    folder = tmp_path_factory.mktemp("served")
    with served(model, folder, "-m", str(fast)) as (url, process):
        yield url, folder, process, str(fast)


@pytest.fixture(params=["wide"])
def page(request: Any, browser: Any, server: Any) -> Iterator[Page]:
    page = Page(browser, server[0], request.param)
    yield page
    page.tab.close()
    assert not page.complaints
    beyond = [url for url in page.requests if not url.startswith((server[0], "data:", "blob:"))]
    assert not beyond, "requests to others"


def job_files(folder: Path) -> list[Path]:
    return list(folder.glob("tmp/cabm-web-*/jobs/*"))


@pytest.mark.parametrize("page", list(SIZES), indirect=True)
def test_an_image_is_upscaled_shown_and_downloaded(page, model, tmp_path):
    pixels = photo(300, 400)
    path = save_photo(tmp_path / "a photo.jpg", pixels)
    page.shoot("empty")
    page.upscale(path)
    facts = page.tab.locator(".facts").inner_text()
    assert "FAB" in facts and "BitOPs saved" in facts and "bypassed" in facts
    assert "network" in page.tab.locator(".phases").inner_text()
    page.shoot("upscaled")

    svg = page.tab.locator(".bit-map svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    svg.hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.5})
    tip = page.tab.locator(".bit-map .tip").inner_text()
    assert all(word in tip for word in ("row ", "edge score ", " bits", " ms")), tip
    page.shoot("tile")
    svg.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.5})
    page.tab.locator("#whole").wait_for()
    assert "A detail of" in page.tab.locator("#shown").inner_text()
    page.shoot("detail")
    page.tab.locator("#whole").click()
    page.tab.get_by_text("Every pixel of the result").wait_for()

    result = Image.open(page.download(tmp_path))
    assert Path(result.filename).name == "a photo_x2.png"
    np.testing.assert_array_equal(np.asarray(result), Upscaler.load(model)(Image.open(path)))
    assert result.getexif()[0x010E] == "a description"
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= SIZES[page.size][0]


def test_the_slider_compares_and_zooms(page, tmp_path):
    page.upscale(save_photo(tmp_path / "p.png", photo(200, 300)))
    shown = page.tab.locator("#compare img")
    shown.nth(1).wait_for()
    sizes = shown.evaluate_all("images => images.map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[600, 400], [600, 400]]
    shown.first.scroll_into_view_if_needed()
    box = shown.first.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def picture() -> bytes:
        page.tab.mouse.move(5, 5)
        page.tab.wait_for_timeout(500)
        return page.tab.locator("#compare").screenshot()

    first = picture()
    page.tab.mouse.move(*middle)
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + box["width"] * 0.2, middle[1], steps=5)
    page.tab.mouse.up()
    moved = picture()
    assert moved != first
    page.tab.mouse.move(*middle)
    page.tab.mouse.wheel(0, -400)
    assert picture() != moved


def test_formats_keep_metadata_and_16_bits(page, tmp_path):
    gray = photo(60, 80, 1, np.uint16)[..., 0]
    Image.fromarray(gray).save(tmp_path / "deep.png", dpi=(300, 300))
    page.choose("Download as", "TIFF")
    page.upscale(tmp_path / "deep.png")
    result = Image.open(page.download(tmp_path))
    assert result.format == "TIFF" and np.asarray(result).dtype == np.uint16
    assert result.info["dpi"][0] == pytest.approx(300, rel=0.01)


def test_cancel_stops_the_computing(page, server, tmp_path):
    _, folder, process, _ = server
    page.choose("Engine", "Float")
    page.upload(save_photo(tmp_path / "large.png", photo(2000, 2000)))
    page.tab.locator("#go").click()
    page.tab.get_by_text("left", exact=False).locator("visible=true").first.wait_for()
    page.shoot("running")
    page.tab.locator("#cancel").click()
    page.tab.get_by_text("Cancelled after").wait_for()
    page.shoot("cancelled")
    assert page.tab.locator("#go").is_enabled() and not page.tab.locator("#cancel").is_visible()
    assert not [file for job in job_files(folder) for file in job.iterdir()]
    # the time of the processor stands still but for the server's own wakes
    before = cpu_seconds(process.pid)
    time.sleep(3)
    assert cpu_seconds(process.pid) - before < 1


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_bad_file_is_one_clear_line(page, tmp_path):
    (tmp_path / "notes.jpg").write_text("no image")
    page.upload(tmp_path / "notes.jpg")
    line = page.tab.locator("#status .error").inner_text()
    assert line.startswith("notes.jpg: not an image that can be read") and "\n" not in line
    page.shoot("bad-file")
    page.tab.locator("#go").click()
    page.tab.locator("#cancel").wait_for()
    page.tab.locator("#status .error").wait_for()
    page.tab.locator("#cancel").wait_for(state="hidden")


def test_a_large_image_is_shown_smaller_and_downloaded_whole(page, server, tmp_path):
    large = np.kron(photo(260, 340), np.ones((10, 10, 1), np.uint8))
    path = save_photo(tmp_path / "large.jpg", large)  # 8.8 megapixels
    page.choose("Model", server[3])
    page.upscale(path)
    shown = page.tab.locator("#compare img")
    shown.nth(1).wait_for()
    sizes = shown.evaluate_all("images => images.map(i => i.naturalWidth * i.naturalHeight)")
    assert all(10e6 < pixels <= 16e6 for pixels in sizes)
    assert "to spare the browser" in page.tab.locator("#shown").inner_text()
    started = time.monotonic()
    page.tab.locator(".bit-map svg").hover()
    assert "bicubic" in page.tab.locator(".bit-map .tip").inner_text()
    assert time.monotonic() - started < 20, "the page hangs"
    page.shoot("large")
    assert Image.open(page.download(tmp_path)).size == (6800, 5200)


def test_an_image_is_pasted(page, tmp_path):
    path = save_photo(tmp_path / "p.png", photo(30, 40))
    page.tab.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        list(path.read_bytes()),
    )
    page.tab.get_by_text("40 × 30 pixels").wait_for()


def test_closing_the_page_stops_its_job_and_removes_its_files(browser, server, tmp_path):
    page = Page(browser, server[0])
    page.choose("Engine", "Float")
    page.upload(save_photo(tmp_path / "large.png", photo(2000, 2000)))
    page.tab.locator("#go").click()
    page.tab.get_by_text("left", exact=False).locator("visible=true").first.wait_for()
    page.tab.close()
    end = time.monotonic() + 120
    while job_files(server[1]) and time.monotonic() < end:
        time.sleep(0.5)
    assert not job_files(server[1])


@pytest.mark.parametrize("page", list(SIZES), indirect=True)
def test_a_model_is_described(page):
    page.tab.get_by_role("tab", name="Model").click()
    page.choose("Model", "edsr_x4/cabm")
    page.tab.get_by_text("Training images").wait_for()
    pictures = page.tab.locator("#model img")
    pictures.nth(1).wait_for(state="attached")
    pictures.nth(1).evaluate("image => image.scrollIntoView()")  # browsers load it when it comes near
    pictures.nth(1).wait_for()
    page.shoot("model")
    assert all(pictures.evaluate_all("images => images.map(i => i.naturalWidth > 800)"))
