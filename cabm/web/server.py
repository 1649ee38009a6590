"""Serve the page: on this machine only unless a host is named, without a word to anybody else."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cabm.errors import InputError
from cabm.web.models import Models
from cabm.web.site import Limits, Site

LOCAL = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 20
_CLOSE_SECONDS = 2


def serve(
    models: Models,
    limits: Limits,
    *,
    host: str = LOCAL,
    port: int | None = None,
    on_ready: Callable[[str], object] = lambda url: None,
) -> None:
    """Serve the page until the process is told to stop.

    Args:
        models: what visitors choose from.
        limits: what they may ask for.
        host: address to listen on.
        port: 0: any free port; None: the first free one from 7860.
        on_ready: called with the address of the page.

    Raises:
        InputError: the port is taken, or the host is not one of this machine.
    """
    import uvicorn

    listening = listen(host, port)
    shown = "localhost" if host == LOCAL else host
    with listening, tempfile.TemporaryDirectory(prefix="cabm-web-", ignore_cleanup_errors=True) as folder:
        app = application(models, limits, Path(folder))
        on_ready(f"http://{f'[{shown}]' if ':' in shown else shown}:{listening.getsockname()[1]}")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listening])


def application(models: Models, limits: Limits, folder: Path) -> Any:
    """Return the page as an ASGI application, for a server of one process.

    Args:
        models: what visitors choose from.
        limits: what they may ask for.
        folder: for uploads and results; the caller removes it.
    """
    _quiet(folder)
    import gradio as gr
    from fastapi import FastAPI

    from cabm.web.page import Page, asset

    site = Site(models, limits, folder)
    page = Page(site)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        site.visits.close_all()

    colors, sans = gr.themes.colors, ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue=colors.purple,
        neutral_hue=colors.slate,
        font=sans,
        font_mono=["ui-monospace", "monospace"],
    )
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        theme=theme,
        css=asset("page.css"),
        head=f"<script>{asset('paste.js')}</script>",
        footer_links=[],
        run_history=False,
        max_file_size=f"{limits.max_upload_mb}mb",
        show_error=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    return NoFetching(app)


class NoFetching:
    """Refuses the addresses at which Gradio would fetch a file from another server.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request; see the ASGI specification."""
        path = scope.get("path", "")
        if scope["type"] == "http" and ("/proxy=" in path or "/file=http" in path):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: a name or an address of this machine.
        port: 0: any free port; None: the first free one from `FIRST_PORT`.

    Raises:
        InputError: the port is taken, or the host is not one of this machine.
    """
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            reason = error.strerror or str(error)
            if port is not None or error.errno != errno.EADDRINUSE:
                raise InputError(f"cannot listen on {host}, port {candidate}: {reason}") from None
    raise InputError(
        f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} of {host} are taken; name a free one with --port"
    )


def _quiet(folder: Path) -> None:
    """Tell Gradio where to keep files, and to talk to nobody. It reads this when it is imported."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
