"""A tiny pipeline as a process that can be killed, and checks of its files that hold at any time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from cabm.checkpoints.model_directory import load_model
from cabm.data.store import PackedStore
from cabm.files import read_json
from cabm.tables.observations import Observations
from cabm.tables.table import EdgeToBitTable
from tests.data.helpers import assert_pixels_as_packed
from tests.sharing.project import Clone, make_project, tiny_params, write_params

STAGES = ("prepare", "full_precision", "pams", "cadyq", "edge_to_bit", "cabm", "evaluate")
TRAINING = ("full_precision", "pams", "cadyq", "cabm")
# Must be equal to the bit. The results also hold durations.
EXACT = ("data/prepared", "models", "tables", "metrics", "curves")
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")


def fault_params() -> dict[str, Any]:
    """Return tiny params whose training writes a resume state after every step."""
    params = tiny_params()
    params["runtime"]["checkpoint_seconds"] = 0
    params["tracking"]["log_every"] = 5
    for stage in TRAINING:
        params[stage] |= {"steps": 40, "validate_every": 20}
    return params


def make_fault_project(root: Path, environment: dict[str, str]) -> Clone:
    project = make_project(root, environment)
    write_params(root, fault_params())
    project.commit("Train with a state after every step")
    return project


@dataclass
class Repro:
    """A running ``dvc repro`` in its own process group."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def running_stage(self) -> str | None:
        """The stage that DVC named last."""
        found = re.findall(r"Running stage '(\w+)'", self.output)
        return found[-1] if found else None

    def wait_for_stage(self, stage: str, timeout_s: float = 1800) -> bool:
        """Wait until a stage starts; return False if the pipeline does not run it."""
        deadline = time.monotonic() + timeout_s
        while (running := self.running_stage) != stage:
            beyond = running is not None and STAGES.index(running) > STAGES.index(stage)
            if beyond or self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
        return True

    def wait_while(self, stage: str, timeout_s: float, until: Callable[[], bool] = lambda: False) -> None:
        """Wait until a stage or the pipeline ends, the time is up or ``until`` returns True."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.running_stage == stage and self.process.poll() is None:
            if until():
                return
            time.sleep(0.02)

    def kill(self) -> bool:
        """Kill the whole group; return whether it was still running."""
        running = self.process.poll() is None
        if running:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return running


@contextmanager
def repro(project: Clone, log: Path, *targets: str) -> Iterator[Repro]:
    """Run ``dvc repro`` during the block, and kill it at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", *targets],
            cwd=project.root,
            env={**project.environment, "PYTHONPATH": str(project.root), "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Repro(process, log)
    try:
        yield running
    finally:
        running.kill()


def cached_files(project: Clone) -> dict[str, Path]:
    """Return the objects of DVC's cache by hash, and check that each has the hash in its name.

    DVC would use a half-written object like a whole one.
    """
    found = {}
    cache = project.root / ".dvc" / "cache" / "files" / "md5"
    for path in cache.glob("??/*"):
        digest = path.parent.name + path.name.removesuffix(".dir")
        if not re.fullmatch(r"[0-9a-f]{32}", digest):
            continue  # a temporary file of DVC
        assert hashlib.md5(path.read_bytes()).hexdigest() == digest, f"{path}: damaged"
        found[digest] = path
    return found


def assert_whole(project: Clone) -> None:
    """Load every file that has its final name."""
    root = project.root
    for index in (root / "data" / "prepared").rglob("index.json"):
        if not is_temporary(index, root):
            PackedStore.open(index.parent)
            assert_pixels_as_packed(index.parent)
    for config in (root / "models").glob("[!.]*/config.json"):
        load_model(config.parent)
    table, observations = root / "tables" / "edge_to_bit.json", root / "tables" / "observations.npz"
    if table.exists():
        EdgeToBitTable.load(table)
    if observations.exists():
        Observations.load(observations)
    for path in [*(root / "metrics").glob("[!.]*.json"), *(root / "results").glob("[!.]*.json")]:
        read_json(path)
    for state in (root / ".resume").rglob("state.safetensors"):
        with safe_open(state, framework="np") as file:
            json.loads(file.metadata()["history"])


def is_temporary(path: Path, root: Path) -> bool:
    """Whether a path is, or is inside, a temporary file or folder of `cabm.files`."""
    return any(_TEMPORARY.fullmatch(part) for part in path.relative_to(root).parts)


def leftovers(project: Clone) -> list[Path]:
    """Return the temporary files that killed writers left."""
    root = project.root
    folders = ("data/prepared", "models", "tables", "metrics", "curves", "timing", "results", ".resume")
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return [path for path in files if is_temporary(path, root)]
