"""No file runs code, nothing reports home, nothing listens to the network."""

from __future__ import annotations

import ast
import configparser
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cabm.errors import InputError
from tests.conftest import REPOSITORY
from tests.fuzz.targets import NAMES, join_safetensors, targets
from tests.upscaling.helpers import tiny_model

CODE = sorted([*(REPOSITORY / "cabm").rglob("*.py"), *(REPOSITORY / "stages").glob("*.py")])
RUNNING_CODE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# what must be said at each call, so that neither a default nor a change of defaults decides
SAID = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> Any:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def faults_of(source: str) -> list[str]:
    """Name everything in a source that could run code which a file brings along."""
    tree = ast.parse(source)
    found = [f"imports {name}" for name in imported(tree) if name in RUNNING_CODE]
    for name, call in calls(tree):
        if name in SAID and keyword(call, SAID[name][0]) is not SAID[name][1]:
            found.append(f"{name} without {SAID[name][0]}={SAID[name][1]}")
        if name in ("eval", "exec", "torch.jit.load", "yaml.unsafe_load", "yaml.full_load", "os.system"):
            found.append(name)
        if name == "yaml.load" and ast.unparse(call.args[-1]) != "_Loader":  # a SafeLoader
            found.append("yaml.load with another loader")
        if any(k.arg == "shell" for k in call.keywords):
            found.append(f"{name} through a shell")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_code_of_a_file_is_run(path: Path) -> None:
    assert not faults_of(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert faults_of(source)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def malicious_files(marker: Path) -> dict[str, bytes]:
    """The object in every wrapping in which a library might unpickle it."""
    thing = Malicious(marker)
    objects = np.array([thing], dtype=object)
    npy, npz, saved, old = (io.BytesIO() for _ in range(4))
    np.save(npy, objects, allow_pickle=True)
    header = np.array(json.dumps({"format": "cabm.observations/1"}))
    np.savez(npz, header=header, scores=objects, bits=objects, images=objects)
    torch.save({"state_dict": {"weight": thing}}, saved)
    torch.save({"weight": thing}, old, _use_new_zipfile_serialization=False)
    plain = {f"pickle {version}": pickle.dumps(thing, version) for version in range(6)}
    yaml_text = (
        f"model: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{marker}]]"
    )
    return plain | {
        "npy": npy.getvalue(),
        "npz": npz.getvalue(),
        "torch": saved.getvalue(),
        "old torch": old.getvalue(),
        "yaml": yaml_text.encode(),
        "safetensors": join_safetensors(pickle.dumps(thing), b""),
    }


def test_the_malicious_files_would_work(tmp_path: Path) -> None:
    for name, content in malicious_files(tmp_path / "marker").items():
        match name:
            case "npy":
                np.load(io.BytesIO(content), allow_pickle=True)
            case "npz":
                np.load(io.BytesIO(content), allow_pickle=True)["scores"]
            case "torch" | "old torch":
                torch.load(io.BytesIO(content), weights_only=False)
            case "yaml" | "safetensors":
                continue
            case _:
                pickle.loads(content)
        assert (tmp_path / "marker").exists(), name
        (tmp_path / "marker").unlink()


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_is_never_run(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for content in malicious_files(marker).values():
        with tempfile.TemporaryDirectory() as folder:
            try:
                targets()[name].read(Path(folder), content)
            except InputError:
                pass
            else:
                # the one starts over; the other reads the YAML as a table of no rows
                assert name in ("resume state", "curve"), "taken for a whole file"
        assert not marker.exists()


WATCHED = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
        with open(os.environ["WATCH_LOG"], "a") as log:
            print(event, *(arguments[1:] if event != "socket.getaddrinfo" else arguments[:1]), file=log)
sys.addaudithook(watch)
"""


def network_events(folder: Path, *command: str, **variables: str) -> list[str]:
    """Run Python and return every address that it, or a Python under it, connects or listens to."""
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCHED)
    log = folder / "events.txt"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
    environment |= {"PYTHONPATH": f"{folder / 'watch'}{os.pathsep}{REPOSITORY}", "WATCH_LOG": str(log)}
    environment |= {"HOME": str(folder)} | variables
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines() if log.exists() else []


def test_the_watch_sees_connections(tmp_path: Path) -> None:
    script = (
        "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); socket.getaddrinfo('localhost', 1)"
    )
    assert len(network_events(tmp_path, "-c", script)) == 2


def test_the_command_talks_to_nobody(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    assert network_events(tmp_path, "-m", "cabm", "model", "show", str(model)) == []


@pytest.mark.slow
def test_a_tracked_stage_talks_to_nobody(tmp_path: Path) -> None:
    params = (REPOSITORY / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params)
    script = REPOSITORY / "stages" / "prepare_data.py"
    events = network_events(tmp_path, str(script), DVC_ROOT=str(tmp_path))
    assert (tmp_path / "mlflow.db").exists(), "nothing was tracked"
    # urllib3 binds a socket to the loopback, to see whether there is IPv6
    assert not [event for event in events if event != "socket.bind ('::1', 0)"]


def test_dvc_reports_nothing_home() -> None:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / ".dvc" / "config")
    assert config["core"].getboolean("analytics") is False


def test_nothing_is_told_to_listen_to_the_network() -> None:
    texts = [*CODE, REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "dvc.yaml"]
    for path in texts:
        for line in path.read_text().splitlines():
            # only the page says how to serve it to others, by an option that has to be given
            assert "0.0.0.0" not in line or path.name == "web.md", f"{path}: {line}"
            if "mlflow server" in line or "mlflow ui" in line:
                assert "--host" not in line or "--host 127.0.0.1" in line, f"{path}: {line}"


def test_the_licence_is_there_and_named() -> None:
    assert (REPOSITORY / "LICENSE").read_text().startswith("MIT License")
    assert 'license = "MIT"' in (REPOSITORY / "pyproject.toml").read_text()
