from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
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
from PIL import Image

from cabm.serving import ImageService, Quality, Registered, ServingSettings, log_and_register
from cabm.tracking import NullTracker, TrackingSettings, open_run

SETTINGS = ServingSettings(min_psnr_gain=0.02, min_fab_gain=0.05)
BASE = Quality(26.0, 6.0, "validation")


def double(image: np.ndarray) -> np.ndarray:
    return image.repeat(2, axis=0).repeat(2, axis=1)


def to_text(image: np.ndarray, file_format: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=file_format)
    return base64.b64encode(buffer.getvalue()).decode()


def to_image(text: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    assert image.format == "PNG"
    return np.asarray(image)


@pytest.fixture()
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


# ---------------------------------------------------------------- the service


def test_every_image_of_a_request_is_enlarged(photo: np.ndarray) -> None:
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
        (to_text(np.zeros((101, 100, 3), np.uint8)), "100x101 pixels are more than the limit"),
        ("A" * 2_000_000, "2000000 characters are more than the limit"),
    ],
    ids=["words", "letters", "padding", "none", "number", "empty", "text", "cut", "large", "long"],
)
def test_a_bad_payload_says_which_row_and_why(value: Any, message: str, photo: np.ndarray) -> None:
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
        (27.0, 6.01, False),  # better, but dearer
        (25.99, 4.0, False),  # cheaper, but worse
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


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments()
    MlflowClient(tracking_uri=f"sqlite:///{database}").search_registered_models()
    return database


@pytest.fixture()
def uri(migrated: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(migrated, tmp_path / 'mlflow.db')}"


@pytest.fixture()
def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri)


@pytest.fixture()
def model_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose config says by how much ``standin`` repeats the pixels."""
    directory = tmp_path / "models" / "cabm"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"scale": 2}')
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "standin.py").write_text(
        "import json, pathlib\n"
        "from cabm.serving import ImageService\n"
        "def _load_pyfunc(directory, config=None):\n"
        "    scale = json.loads(pathlib.Path(directory, 'config.json').read_text())['scale']\n"
        "    return ImageService(lambda x: x.repeat(scale, 0).repeat(scale, 1), **(config or {}))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return directory


def register(uri: str, directory: Path, quality: Quality = BASE) -> Registered | None:
    with open_run(
        TrackingSettings(uri=uri), stage="cabm", params={"seed": 1}, tags={}, pipeline_key="k"
    ) as tracker:
        return log_and_register(
            tracker,
            directory,
            name="cabm-edsr-x2",
            quality=quality,
            settings=SETTINGS,
            loader_module="standin",
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


def test_a_model_holds_its_code_and_nothing_pickled(
    uri: str, client: MlflowClient, model_directory: Path, tmp_path: Path
) -> None:
    register(uri, model_directory)
    source = client.get_model_version("cabm-edsr-x2", "1").source
    folder = Path(source.removeprefix("file://"))
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert Path("data/cabm/config.json") in files
    assert Path("code/cabm/serving.py") in files
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pyc", ".pt")]
    requirements = (folder / "requirements.txt").read_text()
    assert "torch==2" in requirements
    assert "+cpu" not in requirements


def test_a_served_model_imports_only_what_it_requires() -> None:
    script = """
import sys
import cabm.serving, cabm.checkpoint, cabm.inference
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


# ---------------------------------------------------------------- over HTTP


@pytest.fixture()
def service(uri: str, model_directory: Path, tmp_path: Path) -> Iterator[str]:
    """The address of ``mlflow models serve`` with the champion."""
    register(uri, model_directory)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    # It starts uvicorn by name.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(tmp_path / "modules")  # for the stand-in; cabm comes along
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", "models:/cabm-edsr-x2@champion", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(url: str, body: Any) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_the_server_answers_images_and_refuses_the_rest(service: str, photo: np.ndarray) -> None:
    good = to_text(photo)
    status, answer = post(service, {"dataframe_records": [{"image": good}, {"image": good}]})
    assert status == 200
    for row in answer["predictions"]:
        np.testing.assert_array_equal(to_image(row["image"]), double(photo))
    split = {"dataframe_split": {"columns": ["image"], "data": [[good]]}}
    assert post(service, split)[0] == 200
    assert post(service, {"inputs": {"image": [good]}})[0] == 200
    assert post(service, {"instances": [{"image": good}]})[0] == 200

    for value, message in [
        ("?", "row 0, column 'image': not base64"),
        (base64.b64encode(b"text").decode(), "not an image"),
        (to_text(np.zeros((2049, 2048, 3), np.uint8)), "2048x2049 pixels are more than the limit"),
    ]:
        status, answer = post(service, {"dataframe_records": [{"image": value}]})
        assert status == 400
        assert message in answer["message"]
        assert len(answer["message"]) < 2000
    for body in ({"dataframe_records": [{"picture": good}]}, {"unknown": 1}, b"{", [1]):
        assert post(service, body)[0] == 400
    assert post(service, split)[0] == 200, "it goes on serving"
