"""The page: Gradio components and what connects them. Everything else is in `cabm.web.site`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from cabm.errors import InputError
from cabm.imaging.formats import DEFAULT_QUALITY
from cabm.upscaling.request import UpscaleRequest
from cabm.web import panels
from cabm.web.bit_map import bit_map
from cabm.web.controls import size_controls, upload
from cabm.web.jobs import Phase
from cabm.web.pictures import Pictures, Shown
from cabm.web.site import Site, output_size

FORMATS = [("PNG", "png"), ("JPEG", "jpeg"), ("WebP", "webp"), ("TIFF", "tiff")]
ENGINES = [("Automatic", "auto"), ("Integer (int8)", "int8"), ("Float", "float")]
FILES = "gradio_api/file="
_POLL_SECONDS = 0.25
_KEEP_SECONDS = 6 * 3600  # uploads of pages that stay open


def asset(name: str) -> str:
    """Return a file of ``assets``."""
    return (files("cabm.web") / "assets" / name).read_text(encoding="utf-8")


class Page:
    """The components of one page and the functions that its events call.

    Args:
        site: what the page does.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        with gr.Blocks(
            title="cabm: upscale photographs",
            analytics_enabled=False,
            delete_cache=(600, _KEEP_SECONDS),
            fill_width=True,
        ) as self.blocks:
            gr.HTML(
                "<header><h1>cabm</h1><p>Upscale photographs, and see the bits of each tile.</p></header>"
            )
            with gr.Tab("Upscale"):
                self._upscale_tab()
            with gr.Tab("Model") as model_tab:
                self._model_tab(model_tab)
            self._connect()
        self.blocks.queue(max_size=site.limits.max_waiting, default_concurrency_limit=4, api_open=False)

    def _upscale_tab(self) -> None:
        names = list(self.site.models.paths)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=1, min_width=290, elem_id="controls"):
                self.image = upload(label="Image", elem_id="image", height=130)
                self.model = gr.Dropdown(names, value=names[0], label="Model", filterable=False)
                self.engine = gr.Dropdown(ENGINES, value="auto", label="Engine", filterable=False)
                self.size = size_controls()
                with gr.Row():
                    self.format = gr.Dropdown(
                        FORMATS, value="png", label="Download as", filterable=False, min_width=110
                    )
                    self.quality = gr.Number(
                        DEFAULT_QUALITY,
                        label="Quality",
                        minimum=1,
                        maximum=100,
                        precision=0,
                        visible=False,
                        min_width=90,
                    )
                self.go = gr.Button("Upscale", variant="primary", elem_id="go")
                self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
            with gr.Column(scale=4, min_width=320):
                self.status = gr.HTML(panels.idle(), elem_id="status")
                with gr.Column(visible=False, elem_id="result") as self.result:
                    self.slider = gr.ImageSlider(
                        label="Before and after",
                        elem_id="compare",
                        interactive=False,
                        buttons=["fullscreen"],
                        max_height=620,
                        type="filepath",
                    )
                    with gr.Row(elem_id="shown"):
                        self.shown_as = gr.HTML()
                        self.whole = gr.Button("Whole image", size="sm", visible=False, elem_id="whole")
                    gr.HTML("<h2>Bits of each tile</h2>")
                    self.bits = gr.HTML(js_on_load=asset("bit_map.js"), elem_id="bits")

    def _model_tab(self, tab: gr.Tab) -> None:
        names = list(self.site.models.paths)
        name = gr.Dropdown(names, value=names[0], label="Model", filterable=False, elem_id="described")
        options = {"buttons": ["fullscreen"], "show_label": False, "interactive": False, "type": "filepath"}
        with gr.Row(elem_id="model"):
            card = gr.Markdown(elem_id="card")
            with gr.Column():
                with gr.Column(visible=False) as about_table:
                    gr.HTML("<h3>Bits of every layer by edge score</h3>")
                    table = gr.Image(label="Table", **options)
                with gr.Column(visible=False) as about_quality:
                    gr.HTML("<h3>PSNR against FAB</h3>")
                    trade_off = gr.Image(label="PSNR against FAB", **options)

        def describe(chosen: str) -> tuple[Any, ...]:
            try:
                text, *found = self.site.describe(chosen)
            except InputError as error:
                raise gr.Error(str(error)) from None
            visible = [gr.update(visible=path is not None) for path in found]
            return text, *visible, *(path and str(path) for path in found)

        outputs = [card, about_table, about_quality, table, trade_off]
        tab.select(describe, name, outputs, api_visibility="private")
        name.change(describe, name, outputs, api_visibility="private")

    def _connect(self) -> None:
        private = {"api_visibility": "private"}
        inputs = [self.image, self.model, self.engine, self.format, self.quality, *self.size]
        self.panel = [
            self.status,
            self.go,
            self.cancel,
            self.result,
            self.slider,
            self.shown_as,
            self.whole,
            self.bits,
        ]
        self.image.change(
            self.on_image, self.image, [self.status, self.result], show_progress="hidden", **private
        )
        self.format.change(
            lambda name: gr.update(visible=name in ("jpeg", "webp")), self.format, self.quality, **private
        )
        ready = self.go.click(self.on_go, None, self.panel, queue=False, **private)
        run = ready.then(
            self.on_run,
            inputs,
            self.panel,
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=self.status,
            **private,
        )
        self.cancel.click(
            self.on_cancel, None, self.panel, queue=False, cancels=[run], show_progress="hidden", **private
        )
        detail = [self.slider, self.shown_as, self.whole]
        self.bits.select(self.on_tile, None, detail, show_progress_on=self.slider, **private)
        self.whole.click(self.on_whole, None, detail, show_progress_on=self.slider, **private)
        self.blocks.unload(self.on_close)

    def on_image(self, path: str | None) -> tuple[str, Any]:
        """Say what an uploaded image is, or why it cannot be upscaled."""
        if path is None:
            return panels.idle(), gr.update(visible=False)
        image = Path(path)
        try:
            raster = self.site.opened(image)
        except InputError as error:
            return panels.failed(str(error)), gr.update(visible=False)
        said = panels.loaded(image.name, raster.height, raster.width, image.stat().st_size)
        return said, gr.update(visible=False)

    def on_go(self) -> dict:
        """Show that the job waits for its turn."""
        return self._now('<div class="note">Waiting for its turn …</div>', running=True)

    def on_run(
        self,
        path: str | None,
        model: str,
        engine: str,
        file_format: str,
        quality: float,
        size: str,
        first: float | None,
        second: float | None,
        twice: bool,
        request: gr.Request,
    ) -> Iterator[dict]:
        """Upscale, and say how far it is several times a second."""
        if path is None:
            yield self._now(panels.failed("no image yet: drop one, paste one or choose a file"))
            return
        visit = self.site.visits[request.session_hash or ""]
        try:
            wanted = UpscaleRequest(
                model=model,
                engine=engine,
                file_format=file_format,
                quality=int(quality or DEFAULT_QUALITY),
                size=output_size(size, first, second, twice=twice),
            )
            self.site.opened(Path(path))
            job = self.site.start(visit, Path(path), wanted)
        except InputError as error:
            yield self._now(panels.failed(str(error)))
            return
        try:
            while not job.ended:
                yield {self.status: panels.progress_bar(job.wait(_POLL_SECONDS))}
        finally:  # also when the visitor has left
            job.cancel()
            progress = job.wait()
        if progress.phase is Phase.FAILED:
            yield self._now(panels.failed(progress.error))
        elif progress.phase is Phase.CANCELLED:
            yield self._now(panels.cancelled(progress))
        else:
            assert job.result is not None
            yield self._now(*self._shown(job.result))

    def on_cancel(self, request: gr.Request) -> dict:
        """Stop the job of this page, and wait until it has stopped."""
        progress = self.site.visits.cancel(request.session_hash or "")
        return self._now(panels.cancelled(progress))

    def on_tile(self, chosen: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        """Show a tile of the bit map and its surroundings with every pixel."""
        shown = self.site.visits[request.session_hash or ""].shown
        if shown is None:
            raise gr.Error("this page has no result on the server any more; upscale the image again")
        try:
            pictures = self.site.detail(shown, int(chosen.index))
        except InputError as error:
            raise gr.Error(str(error)) from None
        return _pair(pictures), panels.shown_as(pictures, detail=True), gr.update(visible=True)

    def on_whole(self, request: gr.Request) -> tuple[Any, ...]:
        """Show the whole image again."""
        shown = self.site.visits[request.session_hash or ""].shown
        if shown is None:
            raise gr.Error("this page has no result on the server any more; upscale the image again")
        return _pair(shown.pictures), panels.shown_as(shown.pictures), gr.update(visible=False)

    def on_close(self, request: gr.Request) -> None:
        """End what belongs to a page that was closed."""
        self.site.visits.close(request.session_hash or "")

    def _shown(self, shown: Shown) -> tuple[str, dict]:
        pictures, report = shown.pictures, shown.upscaled.report
        return panels.results(shown.upscaled, pictures, FILES), {
            self.slider: gr.update(value=_pair(pictures)),
            self.shown_as: panels.shown_as(pictures),
            self.bits: bit_map(report, shown.under) if report.plans else "",
        }

    def _now(self, status: str, result: dict | None = None, *, running: bool = False) -> dict:
        """Return the state of the page: its status, and a result or none."""
        return {
            self.status: status,
            self.go: gr.update(interactive=not running),
            self.cancel: gr.update(visible=running),
            self.result: gr.update(visible=result is not None),
            self.whole: gr.update(visible=False),
            **(result or {}),
        }


def _pair(pictures: Pictures) -> tuple[str, str]:
    return str(pictures.before), str(pictures.after)
