"""`cabm upscale -`: one image through a pipe, and nothing else in it."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.cli.helpers import check_refusal, save


@pytest.fixture
def feed(monkeypatch):
    """Give the command a standard input."""

    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def start(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "cabm", "upscale", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


def test_a_pipe_gives_what_a_file_gives_and_nothing_else(cabm, tmp_path, model):
    source = save(tmp_path / "a.png", dpi=(300, 300))
    assert cabm("upscale", source, "-o", tmp_path / "b.png", "-m", model)[0] == 0
    process = start("-", "-o", "-", "-m", model, "-v", "--report", stdin=-1, stdout=-1)
    out, err = process.communicate(source.read_bytes(), timeout=300)
    assert process.returncode == 0
    assert out == (tmp_path / "b.png").read_bytes()
    lines = err.decode().splitlines()
    assert "standard input -> standard output" in lines
    assert lines[-1] == "wrote standard output"
    assert not list(tmp_path.glob("*stdin*"))


def test_a_reader_that_stops_ends_the_command_quietly(tmp_path, model):
    source = save(tmp_path / "a.png", 300, 300)
    reader, writer = os.pipe()
    process = start(source, "-o", "-", "-q", "-m", model, stdout=writer)
    os.close(writer)
    os.close(reader)
    assert process.communicate(timeout=300)[1] == b""
    assert process.returncode == 141


def test_an_image_is_not_sent_to_a_terminal(tmp_path, model):
    source = save(tmp_path / "a.png")
    terminal, other = pty.openpty()
    process = start(source, "-o", "-", "-m", model, stdout=other)
    err = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 1
    assert err == "cabm: standard output: is a terminal; redirect it (> FILE), or name a file (-o FILE)\n"
    os.close(terminal)
    os.close(other)


def test_standard_input_goes_to_a_file_in_the_format_of_its_name(cabm, feed, tmp_path, model):
    feed(save(tmp_path / "a.png").read_bytes())
    assert cabm("upscale", "-", "-o", tmp_path / "b.jpg", "-m", model) == (
        0,
        f"wrote {tmp_path / 'b.jpg'}\n",
        "",
    )
    assert Image.open(tmp_path / "b.jpg").format == "JPEG"


def test_the_format_of_standard_output_is_chosen_by_option(tmp_path, model):
    source = save(tmp_path / "a.png")
    process = start(source, "-o", "-", "--format", "webp", "--quality", 100, "-m", model, stdout=-1)
    out, _ = process.communicate(timeout=300)
    found = Image.open(io.BytesIO(out))
    assert (found.format, found.size) == ("WEBP", (100, 80))


def test_notes_name_standard_input(cabm, feed, tmp_path, model):
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (1, 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    feed((tmp_path / "a.tif").read_bytes())
    code, _, err = cabm("upscale", "-", "-o", tmp_path / "b.png", "-m", model)
    assert code == 0
    assert err.startswith("standard input: first of 2 pages")


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"hello", [], "standard input: not an image that can be read"),
        (b"", [], "standard input: is empty; pipe an image into it"),
        (b"x", ["{tmp}"], "-: a pipe takes one image"),
        (b"\x89PNG\r\n\x1a\n", [], "standard input: "),
    ],
)
def test_a_bad_request_is_one_clear_line(cabm, feed, tmp_path, model, content, arguments, message):
    feed(content)
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    result = cabm("upscale", "-", *given, "-o", tmp_path / "b.png", "-m", model)
    check_refusal(result, message)
    assert not (tmp_path / "b.png").exists()


def test_a_folder_does_not_go_through_a_pipe(cabm, tmp_path, model):
    save(tmp_path / "a.png")
    check_refusal(cabm("upscale", tmp_path, "-o", "-", "-m", model), "-: a pipe takes one image")
