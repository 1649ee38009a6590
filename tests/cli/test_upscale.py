from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cabm import Upscaler
from cabm.machine.late_imports import TESTED
from tests.cli.helpers import check_refusal, save
from tests.upscaling.helpers import photo, tiny_model


def test_a_photo_is_upscaled_beside_itself(cabm, tmp_path, model):
    source = save(tmp_path / "phötö.jpg")
    code, out, err = cabm("upscale", source, "-m", model)
    assert (code, err) == (0, "")
    assert out == f"wrote {tmp_path / 'phötö_x2.png'}\n"
    assert Image.open(tmp_path / "phötö_x2.png").size == (100, 80)


@pytest.mark.skipif(not version("torch").startswith(TESTED), reason="imports all of this PyTorch")
def test_a_photo_needs_little_of_pytorch(tmp_path):
    source = save(tmp_path / "a.png")
    script = (
        "import sys; sys.argv = ['cabm', *sys.argv[1:]]\n"
        "from cabm.cli.main import main\n"
        "from cabm.machine.late_imports import UNUSED\n"
        "try: main()\n"
        "finally: print([name for name in UNUSED if '__builtins__' in vars(sys.modules[name])])\n"
    )
    for engine in ("auto", "float"):
        output = tmp_path / f"{engine}.png"
        command = [sys.executable, "-c", script, "upscale", source, "-o", output, "--engine", engine, "-v"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.endswith("\n[]\n")
        upscaler = Upscaler.load(engine=engine)
        assert f"engine {upscaler.engine}" in done.stderr
        assert np.array_equal(np.asarray(Image.open(output)), upscaler(Image.open(source)))


def test_existing_results_are_kept_and_the_summary_says_so(cabm, tmp_path, model):
    source = save(tmp_path / "a.png")
    result = tmp_path / "a_x2.png"
    result.write_bytes(b"old")
    code, out, _ = cabm("upscale", source, "-m", model)
    assert (code, out) == (0, f"kept {result}, which exists (--overwrite replaces it)\n")
    assert result.read_bytes() == b"old"
    assert cabm("upscale", source, "-m", model, "--overwrite")[0] == 0
    assert Image.open(result).size == (100, 80)


def test_a_folder_is_upscaled_and_its_failures_are_listed_at_the_end(cabm, tmp_path, model):
    for name in ("a.png", "sub/b.jpg", "c.webp"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    code, out, err = cabm("upscale", tmp_path / "in", "-o", tmp_path / "out", "-m", model)
    assert code == 1
    assert out == "wrote 3 images\n"
    lines = err.splitlines()
    assert lines[0].startswith(f"cabm: {tmp_path / 'in' / 'bad.png'}: not an image")
    assert lines[1:] == ["cabm: 1 of 4 images failed"]
    assert (tmp_path / "out" / "sub" / "b_x2.png").exists()
    code, out, _ = cabm("upscale", tmp_path / "in", "-o", tmp_path / "out", "-m", model)
    assert (code, out) == (1, "kept 3 that exist (--overwrite replaces them)\n")


def test_a_folder_that_cannot_be_read_fails_the_command(cabm, tmp_path, model, monkeypatch):
    save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":  # root may read any folder
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    code, out, err = cabm("upscale", tmp_path, "-m", model)
    assert (code, out) == (1, f"wrote {tmp_path / 'a_x2.png'}\n")
    assert err == f"cabm: {tmp_path / 'closed'}: cannot be read (Permission denied)\n"


def test_names_that_are_not_utf8_are_printed_with_escapes(cabm, tmp_path, model):
    source = tmp_path / "bad\udcff.png"
    save(source)
    code, out, err = cabm("upscale", source, "-m", model)
    assert (code, out, err) == (0, f"wrote {tmp_path}/bad\\udcff_x2.png\n", "")


def test_format_and_quality_are_taken(cabm, tmp_path, model):
    source = save(tmp_path / "a.png")
    sizes = []
    for quality in (20, 95):
        arguments = ("--format", "jpeg", "--quality", quality, "--overwrite", "-q")
        assert cabm("upscale", source, "-m", model, *arguments) == (0, "", "")
        sizes.append((tmp_path / "a_x2.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


def test_the_report_lists_tiles_bits_and_times(cabm, tmp_path, model):
    flat = np.full((40, 50, 3), 128, np.uint8)
    flat[:, 30:] = photo(40, 20)
    source = tmp_path / "a.png"
    Image.fromarray(flat).save(source)
    code, out, err = cabm("upscale", source, "-m", model, "--report", "-v", "--engine", "float")
    assert code == 0
    words = (
        "tiles",
        "bicubic",
        "FAB",
        "BitOPs",
        "by bits",
        "seconds",
        "decode",
        "score",
        "look up",
        "network",
        "encode",
    )
    assert all(word in out for word in words)
    assert "float on cpu" in out
    assert "engine float" in err


def test_the_bits_are_drawn(cabm, tmp_path, model):
    source = save(tmp_path / "a.png")
    assert cabm("upscale", source, "-m", model, "--bit-map", tmp_path / "bits.png")[0] == 0
    assert Image.open(tmp_path / "bits.png").size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "name", "size"),
    [
        (["--size", "83x61"], "a_83x61.png", (83, 61)),
        (["--width", "83"], "a_w83.png", (83, 66)),
        (["--height", "61"], "a_h61.png", (76, 61)),
        (["--width", "60", "--height", "80"], "a_60x80.png", (60, 80)),
        (["--factor", "1.5"], "a_x1.5.png", (75, 60)),
        (["--max-side", "70"], "a_max70.png", (70, 56)),
        (["--max-side", "700"], "a_max700.png", (100, 80)),
        (["--passes", "2"], "a_x4.png", (200, 160)),
        (["--factor", "3", "--passes", "2"], "a_x3.png", (150, 120)),
    ],
)
def test_the_size_that_is_asked_for(cabm, tmp_path, model, arguments, name, size):
    source = save(tmp_path / "a.png")
    code, out, err = cabm("upscale", source, "-m", model, *arguments)
    assert (code, out) == (0, f"wrote {tmp_path / name}\n")
    assert Image.open(tmp_path / name).size == size
    assert err == (f"{source}: the network ran twice\n" if "--passes" in arguments else "")
    assert cabm("upscale", source, "-m", model, *arguments)[1].startswith(f"kept {tmp_path / name}")


def test_the_report_tells_the_size_and_the_passes(cabm, tmp_path, model):
    source = save(tmp_path / "a.png")
    arguments = ("--factor", "3", "--passes", "2", "--report", "--bit-map", tmp_path / "bits.png")
    code, out, _ = cabm("upscale", source, "-m", model, *arguments)
    assert code == 0
    assert "  size     150 x 120 pixels, reduced from 200 x 160\n" in out
    assert " of 24 x 24, then " in out and "  note     the network ran twice\n" in out
    assert Image.open(tmp_path / "bits.png").size[0] > 500
    code, out, _ = cabm("upscale", source, "-m", model, "--max-side", 20, "--report")
    assert "  size     20 x 16 pixels, reduced from 50 x 40\n" in out
    assert "not larger than the image: reduced without the network" in out and "tiles" not in out


def test_conversions_of_pixels_are_printed(cabm, tmp_path, model):
    Image.fromarray(photo(20, 20)).convert("CMYK").save(tmp_path / "a.jpg")
    code, _, err = cabm("upscale", tmp_path / "a.jpg", "-m", model)
    assert (code, err) == (0, f"{tmp_path / 'a.jpg'}: converted from CMYK to sRGB without a profile\n")


def test_what_cannot_be_kept_is_printed_unless_it_is_stripped(cabm, tmp_path, model):
    info = PngInfo()
    info.add_text("Title", "words")
    Image.fromarray(photo(20, 20)).save(tmp_path / "a.png", pnginfo=info)
    arguments = ("upscale", tmp_path / "a.png", "-o", tmp_path / "b.jpg", "-m", model)
    assert cabm(*arguments)[2] == f"{tmp_path / 'a.png'}: jpeg cannot hold PNG text: left out\n"
    assert cabm(*arguments, "--strip", "--overwrite")[2] == ""


def test_damaged_files_are_upscaled_on_demand(cabm, tmp_path, model):
    Image.fromarray(photo(120, 120)).save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    code, _, err = cabm("upscale", tmp_path / "a.jpg", "-m", model)
    assert code == 1 and "--damaged" in err
    bits = tmp_path / "bits.png"
    code, _, err = cabm("upscale", tmp_path / "a.jpg", "-m", model, "--damaged", "--bit-map", bits)
    assert code == 0 and "the file lost data" in err
    assert bits.exists()


def test_formats_are_listed(cabm):
    code, out, _ = cabm("upscale", "--formats")
    assert code == 0
    assert all(word in out for word in ("PNG", "AVIF", "HEIC", ".jfif"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none.png"], "{tmp}/none.png: no such file"),
        (["{tmp}/text.png"], "not an image"),
        (["{tmp}/a.png", "--max-pixels", "10"], "--max-pixels 2000"),
        (["{tmp}/a.png", "--scale", "4"], "upscales x2, not x4; name a model of that scale"),
        (["{tmp}/a.png", "--size", "4k"], "--size 4k: give width and height, such as --size 3840x2160"),
        (["{tmp}/a.png", "--size", "0x9"], "width 0: give at least 1 pixel"),
        (["{tmp}/a.png", "--size", "9x9", "--width", "9"], "leave out --width and --height"),
        (["{tmp}/a.png", "--size", "9x9", "--factor", "2"], "given by width and height and by factor"),
        (["{tmp}/a.png", "--factor", "-1"], "factor -1.0: give a number above 0"),
        (
            ["{tmp}/a.png", "--factor", "2.5"],
            "the model upscales x2; --passes 2 runs the model twice",
        ),
        (["{tmp}/a.png", "--size", "999x9"], "999 x 9 pixels are more than x2 of its 50 x 40; --passes 2"),
        (["{tmp}/a.png", "--size", "999x9", "--passes", "2"], "x4 of its 50 x 40; choose a smaller size"),
        (["{tmp}/a.png", "--width", "9", "--bit-map", "{tmp}/bits.png"], "has no tiles"),
        (["{tmp}/a.png", "-m", "{tmp}"], "config.json: no such file"),
        (["{tmp}/a.png", "-m", "nowhere"], "nowhere: no such model directory"),
        (["{tmp}/a.png", "-o", "{tmp}/b.gif"], "cannot write gif"),
        (["{tmp}/a.png", "-o", "{tmp}/text.png/x"], "is a file, not a folder"),
        (["{tmp}/a.png", "--tile", "2"], "tiles of 2 pixels that overlap by 6"),
        (["{tmp}/a.png", "--overlap", "much"], "overlap 'much'"),
        (["{tmp}/a.png", "--bit-map", "{tmp}/bits"], "unknown figure format"),
        (["{tmp}/empty"], "no images in this folder"),
        (["{tmp}/a.png", "{tmp}/b.png", "--bit-map", "{tmp}/bits.png"], "draws one image, 2 were given"),
        (["s3://photos/in", "-o", "{tmp}/out"], "s3://photos/in: use `cabm cluster upscale` for buckets"),
        (["{tmp}", "-o", "s3://photos/out"], "s3://photos/out: use `cabm cluster upscale` for buckets"),
        (["http://example.org/a.png"], "http://example.org/a.png: download it first"),
        (["https://example.org/a.png"], "https://example.org/a.png: download it first"),
        (["file:///a%20b.png"], "file:///a%20b.png: give the path /a b.png"),
        (["file:a.png"], "file:a.png: give the path a.png"),
        (["gs://photos/a.png"], "gs://photos/a.png: copy it to this machine first"),
        (["{tmp}", "--ray"], "--ray is now a command of its own: cabm cluster upscale"),
    ],
)
def test_a_bad_request_is_one_clear_line(cabm, tmp_path, model, arguments, message):
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    (tmp_path / "text.png").write_text("hello, world")
    (tmp_path / "empty").mkdir()
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    if "-m" not in given:
        given += ["-m", str(model)]
    check_refusal(cabm("upscale", *given), message.format(tmp=tmp_path))
    assert not list(tmp_path.glob("*_*"))


@pytest.mark.parametrize("asked", [["-v"], []])
def test_a_verbose_job_prints_the_traceback_of_an_unexpected_error(
    cabm, tmp_path, model, monkeypatch, asked
):
    for name in ("a.png", "b.png"):
        save(tmp_path / name)

    def faulty(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("cabm.upscaling.upscaler.Upscaler.start_file", faulty)
    code, _, err = cabm("upscale", tmp_path, "-m", model, *asked)
    assert code == 1
    assert f"cabm: {tmp_path / 'a.png'}: ZeroDivisionError: by zero\n" in err
    assert err.endswith("cabm: 2 of 2 images failed\n")
    assert err.count("in faulty") == (2 if asked else 0)


def test_the_traceback_of_an_error_is_printed_on_request(cabm, tmp_path, model, monkeypatch):
    monkeypatch.setenv("CABM_DEBUG", "1")
    code, _, err = cabm("upscale", tmp_path / "a.png", "-m", model)
    assert code == 1
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.splitlines()[-1] == f"cabm: {tmp_path / 'a.png'}: no such file"


def test_a_bit_map_of_a_model_without_bits_is_refused(cabm, tmp_path):
    plain = tiny_model(tmp_path / "m", "pams")
    code, _, err = cabm("upscale", save(tmp_path / "a.png"), "-m", plain, "--bit-map", tmp_path / "b.png")
    assert code == 1
    assert "a pams model has no bits that differ" in err


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_a_signal_stops_a_job_without_partial_files(tmp_path, model):
    for index in range(30):
        save(tmp_path / "in" / f"{index:02}.png", 300, 300)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cabm", "upscale", str(tmp_path / "in"), "-o", str(out)]
    process = subprocess.Popen(
        [*command, "-m", str(model), "--engine", "float"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not list(out.glob("*_x2.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to resume" in err
    assert "Traceback" not in err
    files = list(out.iterdir())
    assert 0 < len(files) < 30
    for file in files:
        assert np.asarray(Image.open(file)).shape == (600, 600, 3)
