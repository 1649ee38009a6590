from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from cabm.project.sections import ServingSettings, TrackingSettings
from cabm.tracking.registry import Quality, Registered, log_and_register
from cabm.tracking.runs import open_run
from cabm.tracking.service import ImageService
from cabm.tracking.tracker import NullTracker
from cabm.upscaling.upscaler import Upscaler
from tests.tracking.helpers import post, served, to_image, to_text
from tests.upscaling.helpers import photo as photograph
from tests.upscaling.helpers import tiny_model

pytestmark = pytest.mark.usefixtures("quiet_surroundings")

SETTINGS = ServingSettings(min_psnr_gain=0.02, min_fab_gain=0.05)
BASE = Quality(26.0, 6.0, "validation")


def double(image: np.ndarray) -> np.ndarray:
    return image.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture()
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


# ---------------------------------------------------------------- the service


def test_every_image_of_a_request_is_upscaled(photo: np.ndarray) -> None:
    texts = [to_text(photo), to_text(photo[:7, :5]), to_text(photo[..., 0]), to_text(photo, "BMP")]
    rows = ImageService(double).predict(pd.DataFrame({"image": texts}))
    gray = photo[..., :1].repeat(3, axis=2)
    for row, expected in zip(rows, [photo, photo[:7, :5], gray, photo], strict=True):
        np.testing.assert_array_equal(to_image(row["image"]), double(expected))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not base64!", "row 1, column 'image': not base64: 'not base64!'"),
        ("schön", "not base64"),
        ("abc", "not base64"),
        (None, "expected base64 text of an image file, found NoneType"),
        (3.5, "found float"),
        ("", "empty"),
        (base64.b64encode(b"hello, this is text").decode(), "not an image"),
        (to_text(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))[:160], "truncated"),
        (
            to_text(np.zeros((101, 100, 3), np.uint8)),
            "100 x 101 pixels are more than the limit of 9400; use a smaller image",
        ),
        ("A" * 2_000_000, "2000000 characters are more than the limit"),
    ],
    ids=["words", "letters", "padding", "none", "number", "empty", "text", "cut", "large", "long"],
)
def test_a_bad_payload_is_refused_with_row_and_reason(value: Any, message: str, photo: np.ndarray) -> None:
    service = ImageService(double, max_pixels=10_000)
    with pytest.raises(MlflowException) as caught:
        service.predict({"image": [to_text(photo), value]})
    assert caught.value.get_http_status_code() == 400
    assert message in caught.value.message
    assert "row 1, column 'image'" in caught.value.message
    assert "\n" not in caught.value.message
    assert "/tmp" not in caught.value.message


def test_the_limit_holds_for_all_images_of_a_request_together(photo: np.ndarray) -> None:
    service = ImageService(double, max_pixels=2 * 600)
    assert len(service.predict({"image": [to_text(photo)] * 2})) == 2
    with pytest.raises(MlflowException, match="row 2"):
        service.predict({"image": [to_text(photo)] * 3})


# ---------------------------------------------------------------- the champion


@pytest.mark.parametrize(
    ("psnr", "fab", "beats"),
    [
        (26.02, 6.0, True),
        (26.02, 5.0, True),
        (26.0, 5.95, True),
        (26.01, 6.0, False),  # not enough
        (26.0, 5.96, False),
        (27.0, 6.01, False),  # better, but more bits
        (25.99, 4.0, False),  # fewer bits, but worse
        (26.0, 6.0, False),
        (float("nan"), 4.0, False),
    ],
)
def test_which_model_beats_the_champion(psnr: float, fab: float, beats: bool) -> None:
    assert Quality(psnr, fab, "validation").beats(BASE, SETTINGS) is beats
    assert not Quality(psnr, fab, "other").beats(BASE, SETTINGS)


QUALITIES = st.builds(Quality, st.floats(20, 40), st.floats(2, 8), st.sampled_from(["validation", "Set5"]))


@given(QUALITIES, QUALITIES, QUALITIES)
def test_beating_is_a_strict_order(first: Quality, second: Quality, third: Quality) -> None:
    assert not first.beats(first, SETTINGS)
    if first.beats(second, SETTINGS):
        assert not second.beats(first, SETTINGS)
        if second.beats(third, SETTINGS):
            assert first.beats(third, SETTINGS)


# ---------------------------------------------------------------- the registry


@pytest.fixture()
def uri(migrated: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(migrated, tmp_path / 'mlflow.db')}"


@pytest.fixture()
def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri)


@pytest.fixture()
def model_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose config gives the number of times that ``standin`` repeats each pixel."""
    directory = tmp_path / "models" / "cabm"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"scale": 2}')
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "standin.py").write_text(
        "import json, pathlib\n"
        "from cabm.tracking.service import ImageService\n"
        "def _load_pyfunc(directory, config=None):\n"
        "    scale = json.loads(pathlib.Path(directory, 'config.json').read_text())['scale']\n"
        "    return ImageService(lambda x: x.repeat(scale, 0).repeat(scale, 1), **(config or {}))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return directory


def register(
    uri: str, directory: Path, quality: Quality = BASE, loader_module: str = "standin"
) -> Registered | None:
    with open_run(
        TrackingSettings(uri=uri), stage="cabm", params={"seed": 1}, tags={}, pipeline_key="k"
    ) as tracker:
        return log_and_register(
            tracker,
            directory,
            name="cabm-edsr-x2",
            quality=quality,
            settings=SETTINGS,
            loader_module=loader_module,
        )


def test_versions_and_the_champion(uri: str, client: MlflowClient, model_directory: Path) -> None:
    outcomes = [
        (Quality(float("nan"), 6.0, "validation"), False, "not a number"),
        (BASE, True, "the first"),
        (Quality(26.0, 6.0, "validation"), False, "no: 26.000 dB at 6.000 bits against version 2"),
        (Quality(26.5, 5.5, "validation"), True, "yes: 26.500 dB at 5.500 bits against version 2"),
        (Quality(30.0, 4.0, "Set5"), False, "version 4 was measured on validation"),
    ]
    for number, (quality, is_champion, reason) in enumerate(outcomes, start=1):
        registered = register(uri, model_directory, quality)
        assert registered is not None
        assert (registered.version, registered.is_champion) == (str(number), is_champion)
        assert reason in registered.reason
    assert str(client.get_model_version_by_alias("cabm-edsr-x2", "champion").version) == "4"
    version = client.get_model_version("cabm-edsr-x2", "4")
    assert version.tags["psnr"] == "26.5"
    assert version.tags["champion"].startswith("yes")
    run = client.get_run(version.run_id)
    assert run.data.tags["stage"] == "cabm"
    assert run.data.metrics["model/fab"] == 5.5
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert logged.name == "cabm-edsr-x2"
    assert logged.status == "READY"
    assert logged.params["seed"] == "1"


def test_a_champion_without_numbers_stays(uri: str, client: MlflowClient, model_directory: Path) -> None:
    register(uri, model_directory)
    client.delete_model_version_tag("cabm-edsr-x2", "1", "psnr")
    registered = register(uri, model_directory, Quality(40.0, 2.0, "validation"))
    assert registered is not None
    assert not registered.is_champion
    assert "move the alias by hand" in registered.reason


def test_the_registered_model_loads_and_answers(
    uri: str, model_directory: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    register(uri, model_directory)
    model = load_champion(uri)
    (row,) = model.predict(pd.DataFrame({"image": [to_text(photo)]}))
    np.testing.assert_array_equal(to_image(row["image"]), double(photo))
    assert [str(column) for column in model.metadata.signature.inputs.input_names()] == ["image"]
    (row,) = model.predict(model.input_example)
    assert to_image(row["image"]).shape == (48, 64, 3)
    with pytest.raises(MlflowException, match="not base64"):
        model.predict(pd.DataFrame({"image": ["?"]}))
    with pytest.raises(MlflowException, match="missing inputs"):
        model.predict(pd.DataFrame({"picture": ["?"]}))
    small = load_champion(uri, model_config={"max_pixels": 10})
    with pytest.raises(MlflowException, match="limit of 10"):
        small.predict(pd.DataFrame({"image": [to_text(photo)]}))


def test_a_registered_model_contains_its_code_and_nothing_pickled(
    uri: str, client: MlflowClient, model_directory: Path, tmp_path: Path
) -> None:
    register(uri, model_directory)
    source = client.get_model_version("cabm-edsr-x2", "1").source
    folder = Path(source.removeprefix("file://"))
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert Path("data/cabm/config.json") in files
    assert Path("code/cabm/tracking/service.py") in files
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pyc", ".pt")]
    requirements = (folder / "requirements.txt").read_text()
    assert "torch==2" in requirements
    assert "+cpu" not in requirements


def test_a_served_model_imports_only_its_requirements() -> None:
    script = """
import sys
import cabm.tracking.service, cabm.checkpoints.model_directory, cabm.upscaling.tiles
unwanted = "matplotlib dvc mlflow pandas typer yaml scipy sklearn skimage".split()
assert not [name for name in unwanted if name in sys.modules]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def load_champion(uri: str, **options: Any) -> pyfunc.PyFuncModel:
    client = MlflowClient(tracking_uri=uri)
    version = client.get_model_version_by_alias("cabm-edsr-x2", "champion")
    return pyfunc.load_model(version.source, **options)


def test_nothing_is_registered_when_nothing_is_recorded(model_directory: Path) -> None:
    arguments = {"name": "m", "quality": BASE, "settings": SETTINGS}
    assert log_and_register(NullTracker(), model_directory, **arguments) is None
    off = arguments | {"settings": ServingSettings(enabled=False)}
    assert log_and_register(NullTracker(), model_directory, **off) is None


def test_a_store_that_fails_is_one_warning(
    uri: str, model_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(model_directory)
    assert register(uri, model_directory) is None
    (record,) = caplog.records
    assert record.message.startswith("cabm-edsr-x2 is not registered: FileNotFoundError")


# ---------------------------------------------------------------- a real model

TOO_LARGE = np.zeros((2049, 2048, 3), np.uint8)
BAD_IMAGES = [
    ("?", "row 0, column 'image': not base64: '?'; send the bytes of a PNG file in base64"),
    (base64.b64encode(b"text").decode(), "row 0, column 'image': not an image that can be read"),
    (to_text(TOO_LARGE), "row 0, column 'image': 2048 x 2049 pixels are more than the limit of 4194304"),
    ("A" * 50_000_000, "row 0, column 'image': 50000000 characters are more than the limit"),
]


@dataclass(frozen=True)
class RealModel:
    """A registered model directory, a photo, and the photo upscaled by the library."""

    photo: np.ndarray
    upscaled: np.ndarray
    tracking_uri: str
    model_uri: str = "models:/cabm-edsr-x2@champion"


@pytest.fixture()
def real_model(uri: str, tmp_path: Path) -> RealModel:
    directory = tiny_model(tmp_path / "models" / "cabm")
    register(uri, directory, loader_module="cabm.tracking.service")
    image = photograph(40, 70)
    return RealModel(image, Upscaler.load(directory, threads=1)(image), uri)


def test_a_loaded_model_answers_with_the_pixels_of_the_library(
    real_model: RealModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", real_model.tracking_uri)
    model = load_champion(real_model.tracking_uri)
    good = to_text(real_model.photo)
    for row in model.predict(pd.DataFrame({"image": [good, good]})):
        assert to_image(row["image"]).shape == (80, 140, 3)
        np.testing.assert_array_equal(to_image(row["image"]), real_model.upscaled)
    for value, message in BAD_IMAGES:
        with pytest.raises(MlflowException) as caught:
            model.predict(pd.DataFrame({"image": [value]}))
        assert caught.value.message.startswith(message)
        assert "\n" not in caught.value.message
    with pytest.raises(MlflowException, match="missing inputs"):
        model.predict(pd.DataFrame({"picture": [good]}))


@pytest.mark.slow
def test_a_server_answers_with_the_pixels_of_the_library_and_refuses_the_rest(
    real_model: RealModel, tmp_path: Path
) -> None:
    good = to_text(real_model.photo)
    split = {"dataframe_split": {"columns": ["image"], "data": [[good]]}}
    log = tmp_path / "serve.log"
    with served(real_model.model_uri, real_model.tracking_uri, log) as url:
        for body in (
            {"dataframe_records": [{"image": good}, {"image": good}]},
            split,
            {"inputs": {"image": [good]}},
            {"instances": [{"image": good}]},
        ):
            status, answer = post(url, body)
            assert status == 200
            for row in answer["predictions"]:
                np.testing.assert_array_equal(to_image(row["image"]), real_model.upscaled)

        for value, message in BAD_IMAGES:
            status, answer = post(url, {"dataframe_records": [{"image": value}]})
            assert status == 400
            *heading, line = answer["message"].splitlines()  # MLflow quotes the beginning of the data
            assert line.startswith(f"Error: {message}")
            assert len("".join(heading)) < 500
        for body, message in (
            ({"dataframe_records": [{"picture": good}]}, "missing inputs ['image']"),
            ({"unknown": 1}, "exactly one of the input fields"),
            (b"{", "JSON"),
            ([1], "JSON"),
        ):
            status, answer = post(url, body)
            assert status == 400
            assert message in answer["message"], answer
        assert post(url, split)[0] == 200, "the server still answers"
    assert "Traceback" not in log.read_text()
