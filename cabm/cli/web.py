"""`cabm web`."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Annotated

import typer

from cabm.cli.terminal import echo, sigterm_interrupts
from cabm.errors import EXTRAS, require
from cabm.machine.openmp import spin_briefly


def web(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="MODEL",
            help="Also offer this model directory; may be given several times. The first is the default.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on. Default: this machine only.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="N", help="Port; 0 takes any. Default: the first free one from 7860."
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Accept images of up to N pixels.")
    ] = None,
    max_upload: Annotated[
        int, typer.Option(min=1, metavar="MB", help="Accept files of up to so many megabytes.")
    ] = 1000,
    max_waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Refuse new jobs while N wait. One runs at a time.")
    ] = 20,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads. Default: one per core.")
    ] = None,
) -> None:
    """Upscale images on a page in the browser.

    The page is served to this machine only, until Ctrl-C. It needs no network.
    Images and results stay in a temporary folder until the page is closed.

    Examples:

      cabm web --open

      cabm web -m models/cabm --port 8080

      cabm web --host :: --max-pixels 4000000 --max-upload 20
    """
    require("cabm web", *EXTRAS["web"])
    spin_briefly()
    from cabm.web.models import Models
    from cabm.web.server import serve
    from cabm.web.site import Limits

    limits = Limits(max_pixels, max_upload, max_waiting, threads)
    on_ready = partial(_announce, open_browser=open_browser)
    # either signal is the usual end, and both leave no temporary file
    with suppress(KeyboardInterrupt), sigterm_interrupts():
        serve(Models(model or ()), limits, host=host, port=port, on_ready=on_ready)


def _announce(url: str, *, open_browser: bool) -> None:
    echo(f"cabm: the page is at {url} (Ctrl-C stops)", err=True)
    if open_browser:
        import webbrowser

        webbrowser.open(url)
