"""A served model for tests: start one, send it images, read its answers."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.sharing.processes import Process, answers, free_port


def to_text(image: np.ndarray, file_format: str = "PNG") -> str:
    """Return an image as the base64 text of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=file_format)
    return base64.b64encode(buffer.getvalue()).decode()


def to_image(text: str) -> np.ndarray:
    """Return the image of an answer, which is a PNG file."""
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    assert image.format == "PNG"
    return np.asarray(image)


@contextmanager
def served(model_uri: str, tracking_uri: str, log: Path) -> Iterator[str]:
    """Run ``mlflow models serve`` and yield the address that takes requests."""
    port = free_port()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "OMP_NUM_THREADS": "1"}
    # It starts uvicorn by name.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("PYTHONPATH", None)  # the model brings its code along
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", model_uri, "--host", "127.0.0.1", "--port", str(port)]
    server = Process(
        command,
        log,
        environment=environment,
        ready=lambda: answers(f"http://127.0.0.1:{port}/ping"),
        folder=log.parent,
    )
    try:
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        server.stop()


def post(url: str, body: Any) -> tuple[int, Any]:
    """Send JSON (bytes as they are) and return the status and the answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
