from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cabm.cli.main import app
from cabm.errors import InputError
from cabm.web.server import listen
from tests.conftest import REPOSITORY
from tests.test_safety import WATCHED

START_SECONDS = 300


@contextmanager
def served(model: Path, folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run `cabm web` with a folder of its own for temporary files; yield its address and its process.

    The addresses that it connects to, looks up or listens on are in ``folder / "events.txt"``.
    """
    pytest.importorskip("gradio", reason="pip install -e '.[web]'")
    (folder / "watch").mkdir()
    (folder / "tmp").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCHED)
    environment = os.environ | {
        "PYTHONPATH": f"{folder / 'watch'}{os.pathsep}{REPOSITORY}",
        "WATCH_LOG": str(folder / "events.txt"),
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder),
    }
    command = [sys.executable, "-m", "cabm", "web", "-m", str(model), "--port", "0", *options]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield _address(process, folder / "log.txt"), process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(60)


def _address(process: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"http://\S+", log.read_text())
        if found:
            return found[0].replace("localhost", "127.0.0.1")
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def fetched(url: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


@pytest.mark.slow
def test_the_page_is_for_this_machine_and_talks_to_nobody(model, tmp_path):
    with served(model, tmp_path) as (url, process):
        status, text = fetched(url)
        assert status == 200 and "cabm" in text
        assert "fonts.googleapis.com" not in text and "cdnjs" not in text
        for address in ("proxy=http://example.org/a", "file=http://example.org/a", "file=/etc/passwd"):
            assert fetched(f"{url}/gradio_api/{address}")[0] in (403, 404), address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    # asyncio wakes itself through a pair of sockets, which have no address
    (listening,) = {line for line in (tmp_path / "events.txt").read_text().splitlines() if "''" not in line}
    assert listening.startswith("socket.bind ('127.0.0.1', ")
    assert list((tmp_path / "tmp").iterdir()) == [], "temporary files are left"


def test_a_port_that_is_taken_is_one_line():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1, port {port}: Address already in use"):
            listen("127.0.0.1", port)


def test_without_a_port_the_first_free_one_is_taken(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr("cabm.web.server.FIRST_PORT", other.getsockname()[1])
        with listen("127.0.0.1", None) as listening:
            assert listening.getsockname()[1] > other.getsockname()[1]


def test_a_host_that_is_not_this_machine_is_one_line():
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", None)


def test_help_has_examples_and_the_default_is_this_machine():
    text = CliRunner().invoke(app, ["web", "--help"]).output
    assert "cabm web --open" in text and "this machine" in text


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["web"])
    assert isinstance(result.exception, InputError)
    assert 'pip install "cabm[web]"' in str(result.exception)
