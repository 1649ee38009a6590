"""The pages of MLflow's server show a pipeline."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from cabm.project.sections import TrackingSettings
from cabm.tracking.runs import open_run
from tests.conftest import REPOSITORY
from tests.sharing.conftest import MlflowServer
from tests.sharing.project import Clone

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test-servers]'")
pytestmark = pytest.mark.slow

STAGES = ("prepare", "full_precision", "pams", "cadyq", "edge_to_bit", "cabm", "evaluate")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WAIT_MS = 300_000


class Pages:
    """The server's pages in a browser."""

    def __init__(self, context: Any, uri: str, screenshots: Path) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.uri = uri
        self.screenshots = screenshots

    def visit(self, path: str) -> Any:
        self.page.goto("about:blank")
        self.page.goto(f"{self.uri}/#/{path}")
        return self.page

    def shoot(self, name: str) -> None:
        self.page.wait_for_timeout(1000)  # charts fade in
        self.page.screenshot(path=self.screenshots / f"{name}.png")

    def see(self, *texts: str | re.Pattern[str]) -> None:
        for text in texts:
            self.page.get_by_text(text).locator("visible=true").first.wait_for()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser; apt install chromium, or name one in CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def pages(browser: Any, finished: Clone, mlflow_server: MlflowServer) -> Iterator[Pages]:
    """The pages in a new browser profile, because MLflow remembers earlier views."""
    screenshots = REPOSITORY / "build" / "screenshots"
    screenshots.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield Pages(context, mlflow_server.uri, screenshots)
    context.close()


@pytest.fixture(scope="module")
def runs(finished: Clone, mlflow_server: MlflowServer) -> dict[str, str]:
    """Run ids of the finished pipeline by stage; ``pipeline`` is the parent."""
    client = MlflowClient(tracking_uri=mlflow_server.uri)
    name = "edsr x2 "
    (parent,) = [run for run in client.search_runs(["1"]) if run.info.run_name.startswith(name)]
    found = {"pipeline": parent.info.run_id}
    children = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    for run in client.search_runs(["1"], children):
        found[run.data.tags["stage"]] = run.info.run_id
    return found


def test_a_newcomer_finds_psnr_against_fab(pages: Pages, mlflow_server: MlflowServer) -> None:
    settings = TrackingSettings(uri=mlflow_server.uri, experiment="newcomer")
    for key, psnr in (("a" * 10, 20.5), ("b" * 10, 20.6)):
        with open_run(settings, stage="evaluate", params={}, tags={}, pipeline_key=key) as tracker:
            values = {"zoo/cabm_psnr": psnr, "zoo/cabm_fab": 5.0}
            tracker.pipeline_metrics(values, shown=list(values))
    page = pages.visit("experiments")
    page.get_by_role("link", name="newcomer", exact=True).first.click()
    pages.see("as charts")
    page.wait_for_timeout(3000)
    if (note := page.get_by_text("Got it")).is_visible():  # covers the page of a new browser
        note.click()
    with page.expect_popup() as charts:
        page.get_by_role("link", name="as charts").click()
    pages.page = charts.value
    pages.see("PSNR against FAB", "pipeline aaaaaaaaaa", "pipeline bbbbbbbbbb")
    chart = charts.value.locator(".js-plotly-plot").first
    chart.locator(".xtitle", has_text="zoo/cabm_fab").wait_for()
    assert chart.evaluate("chart => chart.data[0].y.length") == 2
    pages.shoot("newcomer_charts")
    assert not pages.errors


def test_stages_are_below_their_pipeline(pages: Pages, runs: dict[str, str]) -> None:
    page = pages.visit("experiments/1/runs?compareRunsMode=TABLE")
    row = page.locator("[role=gridcell]", has=page.locator(f"a[href$='{runs['pipeline']}']"))
    row.wait_for()
    assert page.get_by_text("cadyq (edsr x2").count() == 0, "collapsed at first"
    row.get_by_role("button").first.click()
    pages.see(*(f"{stage} (edsr x2" for stage in STAGES))
    pages.shoot("runs")
    assert not pages.errors


def test_params_have_readable_names(pages: Pages, runs: dict[str, str]) -> None:
    page = pages.visit(f"experiments/1/runs/{runs['pipeline']}")
    pages.see("cadyq.w_bit", "model.options.edsr.num_features", "quantization.search_space")
    page.get_by_text("zoo/cabm_psnr").first.scroll_into_view_if_needed()
    pages.shoot("pipeline")
    pages.visit(f"experiments/1/runs/{runs['cadyq']}")
    pages.see("cadyq.selector_learning_rate", "data.sha256", "weights.sha256")
    pages.shoot("stage")
    pages.visit(f"experiments/1/runs/{runs['cadyq']}/model-metrics")
    pages.see("learning_rate", "train_bits")
    pages.shoot("curves")
    assert not pages.errors


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("evaluate", "psnr_against_fab"),
        ("evaluate", "bit_map"),
        ("evaluate", "crops"),
        ("edge_to_bit", "edge_to_bit"),
    ],
)
def test_figures_show_as_images(stage: str, name: str, pages: Pages, runs: dict[str, str]) -> None:
    page = pages.visit(f"experiments/1/runs/{runs[stage]}/artifacts")
    page.get_by_text(f"{name}.png").first.click()
    image = page.locator("img[src^='blob:'], img[src*='artifact']").first
    image.wait_for()
    width = page.wait_for_function("image => image.naturalWidth", arg=image.element_handle()).json_value()
    assert width > 200
    pages.shoot(f"artifact_{name}")
    assert not pages.errors


def test_two_pipelines_compare_in_charts(
    pages: Pages, runs: dict[str, str], finished: Clone, mlflow_server: MlflowServer
) -> None:
    params = yaml.safe_load((finished.root / "params.yaml").read_text())
    params["cadyq"]["w_bit"] = 0.3
    settings = TrackingSettings(uri=mlflow_server.uri)
    names = {"pipeline_title": "another", "pipeline_params": params, "pipeline_key": "0123456789"}
    with open_run(settings, stage="evaluate", params={}, tags={}, **names) as tracker:
        tracker.pipeline_metrics({"zoo/cabm_psnr": 20.5, "zoo/cabm_fab": 5.2})
    client = MlflowClient(tracking_uri=mlflow_server.uri)
    (other,) = client.search_runs(["1"], "attributes.run_name = 'another 0123456789'")

    page = pages.visit("experiments/1/runs?compareRunsMode=CHART")
    pages.see("zoo/cabm_psnr", "another 0123456789", re.compile("^edsr x2 "))
    page.locator(".js-plotly-plot").first.wait_for()
    pages.shoot("charts")

    ids = f'["{runs["pipeline"]}","{other.info.run_id}"]'
    page = pages.visit(f'compare-runs?runs={ids}&experiments=["1"]')
    page.get_by_role("tab", name="Scatter Plot").click()
    for axis, name in (("x", "zoo/cabm_fab"), ("y", "zoo/cabm_psnr")):
        page.locator(f"#{axis}-axis-selector").locator("visible=true").click()
        page.get_by_role("option", name=name, exact=True).locator("visible=true").click()
    chart = page.locator(".js-plotly-plot").locator("visible=true")
    for axis, name in (("x", "zoo/cabm_fab"), ("y", "zoo/cabm_psnr")):
        chart.locator(f".{axis}title", has_text=name).wait_for()
    assert chart.evaluate("chart => chart.data[0].x.length") == 2
    pages.see("another 0123456789", "cadyq.w_bit")
    pages.shoot("comparison")
    assert not pages.errors


def test_the_champion_is_marked(pages: Pages, runs: dict[str, str]) -> None:
    pages.visit("models/cabm-edsr-x2")
    pages.see("Version 1", "@ champion", "measured_on")
    pages.shoot("model")
    assert not pages.errors
