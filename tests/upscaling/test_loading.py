"""A model that was kept compiled upscales without PyTorch, and as it did before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cabm import Upscaler
from cabm.checkpoints.model_files import CONFIG_FILE, TABLE_FILE, WEIGHTS_FILE
from cabm.engine import kept, onednn
from cabm.errors import InputError
from tests.upscaling.helpers import photo

COMMAND = """
import runpy, sys
sys.argv[:] = ["cabm", *sys.argv[1:]]
try:
    runpy.run_module("cabm", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for compiled models; compiled code stays where it is."""
    folder = tmp_path / "cache" / "models"
    monkeypatch.setattr(kept, "folder", lambda: folder)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of a packaged model, to change."""
    from cabm.checkpoints.find import find_model

    return shutil.copytree(find_model("idn_x2"), tmp_path / "model")


def load(model: Path, **options: str) -> Upscaler:
    """Load a model that is kept, or skip the test where none can be."""
    Upscaler.load(model, engine="int8", device="cpu")
    if not list(kept.folder().glob("*")):
        pytest.skip("on this CPU, models need PyTorch")
    return Upscaler.load(model, **options)


def test_it_gives_the_same_image(cache: Path, model: Path) -> None:
    image = photo(150, 130)
    first = Upscaler.load(model, engine="int8", device="cpu")(image)
    again = load(model)
    assert again.engine == "int8" and again.model.name == "idn"
    np.testing.assert_array_equal(again(image), first)


def test_the_command_does_not_import_pytorch_the_second_time(tmp_path: Path, cache: Path) -> None:
    load(Path("idn_x2"))
    Image.fromarray(photo(100, 60)).save(tmp_path / "photo.png")
    # the user's own folder: compiled code is there
    arguments = ["upscale", str(tmp_path / "photo.png"), "-m", "idn_x2", "--overwrite", "--report"]
    for _ in range(2):
        found = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=True
        )
    assert found.stdout.splitlines()[-1] == "False"
    assert "int8 on cpu" in found.stdout


def test_weights_that_changed_are_found_out(cache: Path, model: Path) -> None:
    load(model)
    weights = model / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="copy the model again"):
        Upscaler.load(model)
    weights.unlink()
    with pytest.raises(InputError, match="no such file"):
        Upscaler.load(model)


def test_a_table_of_another_model_is_refused(cache: Path, model: Path) -> None:
    load(model)
    table = json.loads((model / TABLE_FILE).read_text())
    (model / TABLE_FILE).write_text(json.dumps(table | {"scale": 4}))
    with pytest.raises(InputError, match="does not fit the model"):
        Upscaler.load(model)


def test_another_config_is_another_model(cache: Path, model: Path) -> None:
    load(model)
    config = json.loads((model / CONFIG_FILE).read_text())
    config["options"]["num_blocks"] = 3
    (model / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"(unknown|missing) weights \["):
        Upscaler.load(model)


def test_a_note_in_the_config_does_not_matter(cache: Path, model: Path) -> None:
    load(model)
    before = [*cache.iterdir()]
    config = json.loads((model / CONFIG_FILE).read_text())
    (model / CONFIG_FILE).write_text(json.dumps(config | {"provenance": {"note": "of a reader"}}))
    Upscaler.load(model)
    assert [*cache.iterdir()] == before


@pytest.mark.parametrize("options", [{"engine": "float"}, {"engine": "float", "device": "cpu"}])
def test_the_simulated_model_still_runs(options: dict, cache: Path, model: Path) -> None:
    assert load(model, **options).engine == "float"


def test_without_llvm_layers_run_one_by_one(cache: Path, model: Path) -> None:
    script = (
        "import sys; sys.modules['llvmlite'] = sys.modules['numba'] = None\n"
        "from cabm import Upscaler\n"
        "print(Upscaler.load(sys.argv[1]).engine)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(model)], capture_output=True, text=True, check=True
    )
    assert found.stdout == ("int8\n" if onednn.available()[0] else "float\n")
