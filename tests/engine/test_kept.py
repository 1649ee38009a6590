"""Compiled models that were written to disk compute the same, and damaged ones are not used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cabm.engine import IntegerModel, byte_rows, compile_model, float_rows, kept
from cabm.engine.ends import Ends
from cabm.engine.float_rows import Rows
from cabm.engine.float_winograd import WinogradConv
from cabm.engine.kept_format import CannotBeKept, Writer, read
from cabm.engine.packing import Quantizer
from cabm.engine.pixel_conv import PixelConv

from .helpers import BACKBONES, CHOICES, Engine, calibrated, photograph

WIDE = {  # as many channels as compiled tails read
    "edsr": {"replicate_tail": True},
    "srresnet": {},
    "idn": {"num_features": 32, "num_distilled": 8},
    "carn": {},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return kept.folder()


def written(path: Path, model: IntegerModel) -> Path:
    """Write a model, or skip the test where it cannot be kept."""
    if not kept.write_model(path, model):
        pytest.skip("on this CPU, models need PyTorch")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of a small model, outside the folder."""
    return written(tmp_path / "small", compile_model(calibrated("idn", options=WIDE["idn"])))


@pytest.fixture(params=BACKBONES)
def ends_in_float(request: pytest.FixtureRequest) -> IntegerModel:
    """A small model as a CPU runs it that has no fast products of bytes."""
    model = calibrated(request.param, options=WIDE[request.param])
    return Engine(model, ends=Ends(torch.float32)).compiled


def computed(model: IntegerModel) -> np.ndarray:
    """Upscale two tiles at mixed bits, or at those of the model."""
    tiles = photograph(19, 22, count=2).numpy()
    bits = np.resize([4, 8, 6], (2, model.num_adaptive)) if model.num_adaptive else None
    return model.run(tiles, bits, dtype=np.float32)


@pytest.mark.parametrize("choices", [{}, {"weight_bits": "same"}, CHOICES], ids=str)
@pytest.mark.parametrize("kind", ["cabm", "pams"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_kept_model_computes_the_same(backbone: str, kind: str, choices: dict, tmp_path: Path) -> None:
    model = calibrated(backbone, kind, options=WIDE[backbone], **choices)
    compiled = compile_model(model)
    found = kept.read_model(written(tmp_path / "model", compiled))
    assert found.facts == model.facts
    np.testing.assert_array_equal(computed(found), computed(compiled))


def test_tails_in_float32_compute_the_same(ends_in_float: IntegerModel, tmp_path: Path) -> None:
    found = kept.read_model(written(tmp_path / "model", ends_in_float))
    np.testing.assert_array_equal(computed(found), computed(ends_in_float))


def test_a_process_needs_no_pytorch_to_run_it(small: Path) -> None:
    assert shape_without_torch(small) == "(1, 3, 40, 40) False\n"


def test_nor_for_tails_in_float32(ends_in_float: IntegerModel, tmp_path: Path) -> None:
    path = written(tmp_path / "model", ends_in_float)
    assert shape_without_torch(path) == "(1, 3, 40, 40) False\n"


def shape_without_torch(path: Path) -> str:
    """Run a model in another process; return the shape of its result, and whether PyTorch was imported."""
    script = (
        "import sys, numpy\n"
        "from pathlib import Path\n"
        "from cabm.engine.kept import read_model\n"
        "model = read_model(Path(sys.argv[1]))\n"
        "bits = numpy.full((1, model.num_adaptive), 8)\n"
        "tile = numpy.full((1, 3, 20, 20), 99, numpy.uint8)\n"
        "print(model.run(tile, bits).shape, 'torch' in sys.modules)\n"
    )
    run = [sys.executable, "-c", script, str(path)]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def test_models_are_found_by_their_key(folder: Path, small: Path) -> None:
    model = kept.read_model(small)
    key, other = kept.key_of({"weights": "a"}), kept.key_of({"weights": "b"})
    assert key != other
    assert kept.find(key) is None
    assert kept.keep(key, model)
    assert kept.find(key).facts == model.facts
    assert kept.find(other) is None


def test_the_key_tells_the_cpu_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {kept.key_of({})}
    monkeypatch.setattr(kept, "known_features", lambda: {"avx2": True})
    keys.add(kept.key_of({}))
    monkeypatch.setattr(kept, "cpu_multiplies_bfloat16", lambda: "as it was not")
    keys.add(kept.key_of({}))
    monkeypatch.setattr(kept, "_version", lambda: "another")
    keys.add(kept.key_of({}))
    assert len(keys) == 4


@pytest.mark.parametrize("fault", ["empty", "short", "a changed weight", "a changed name", "text"])
def test_damaged_files_are_not_used(fault: str, folder: Path, small: Path) -> None:
    content = bytearray(small.read_bytes())
    if fault == "empty":
        content.clear()
    elif fault == "short":
        del content[-100:]
    elif fault == "text":
        content[:] = b"not a model at all, but long enough for a checksum and a length of the head"
    else:
        content[-1000 if fault == "a changed weight" else content.index(b"scale")] ^= 1
    folder.mkdir(parents=True)
    (folder / "key").write_bytes(content)
    assert kept.find("key") is None


def test_a_file_of_another_class_is_refused(folder: Path) -> None:
    """Also where somebody has computed the checksum."""
    folder.mkdir(parents=True)
    writer = Writer((Quantizer,), {})
    (folder / "key").write_bytes(writer.content({"program": Quantizer((1.0,), (8,)), "facts": None}))
    assert kept.find("key") is None
    with pytest.raises(KeyError):
        read(folder / "key", {})


def test_objects_that_need_pytorch_are_not_written() -> None:
    with pytest.raises(CannotBeKept, match="object"):
        Writer((), {}).content([object()])


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = [
        random.integers(-9, 9, (3, 5)).astype(np.int8),
        random.standard_normal((7,)).astype(np.float32),
        np.zeros((0, 4), np.uint16),
        np.array(3, np.int64),
        random.standard_normal((4, 6)).T,
    ]
    value = {"a": [1, 0.1, "x", None, True], 8: {2: arrays[0]}, "arrays": arrays}
    (tmp_path / "file").write_bytes(Writer((), {}).content(value))
    found = read(tmp_path / "file", {})
    assert found["a"] == (1, 0.1, "x", None, True)
    np.testing.assert_array_equal(found[8][2], arrays[0])
    for array, original in zip(found["arrays"], arrays, strict=True):
        assert array.dtype == original.dtype and array.flags.writeable
        assert array.flags.c_contiguous and (array.size == 0 or array.ctypes.data % 64 == 0)
        np.testing.assert_array_equal(array, original)


def test_what_was_used_longest_ago_is_forgotten(folder: Path, small: Path) -> None:
    model = kept.read_model(small)
    for number in range(kept.MAX_MODELS):
        assert kept.keep(f"model{number}", model)
        os.utime(folder / f"model{number}", (1000 + number, 1000 + number))
    assert kept.find("model0") is not None  # used now
    assert kept.keep("another", model)
    left = {path.name for path in folder.iterdir()}
    assert left == {"another", *(f"model{number}" for number in range(kept.MAX_MODELS))} - {"model1"}


def test_a_folder_that_cannot_be_written_does_not_matter(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not kept.keep("key", kept.read_model(small))
    assert kept.find("key") is None


def test_a_folder_that_can_only_be_read_is_used(
    folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of another user."""
    assert kept.keep("key", kept.read_model(small))

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert kept.find("key") is not None


def test_a_model_that_vanishes_while_others_are_forgotten_does_not_matter(
    folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kept.read_model(small)
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(folder / "gone")  # as if deleted after it was listed
    assert kept.keep("key", model)
    assert kept.find("key") is not None


@pytest.mark.parametrize("part", ["the layers", "the head", "the tail"])
def test_code_that_does_not_run_here_is_not_used(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_model(calibrated("edsr", options=WIDE["edsr"]))
    path = written(tmp_path / "model", compiled)
    if part == "the layers":
        monkeypatch.setattr(kept, "compiled", lambda **_: None)
    elif part == "the head":
        monkeypatch.setitem(kept.LOOPS, PixelConv, lambda lanes: None)
    elif isinstance(compiled.program.rows, Rows):
        for module in (byte_rows, float_rows):
            monkeypatch.setattr(module, "compiled", lambda: None)
    else:
        monkeypatch.setitem(kept.LOOPS, WinogradConv, lambda lanes: None)
    with pytest.raises(ValueError, match="does not run"):
        kept.read_model(path)


def test_the_head_of_a_file_is_json(small: Path) -> None:
    content = small.read_bytes()
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert head["value"]["pairs"][0][0] == "program"
