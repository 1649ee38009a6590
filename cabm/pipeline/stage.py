"""A stage of the pipeline, and how a script runs it: params, threads, tracking, signals and errors."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cabm import __version__
from cabm.data.store import PackedStore, data_hash
from cabm.errors import (
    PIPELINE,
    InputError,
    PeerLost,
    TrainingDiverged,
    WorkerFailed,
    debugging,
    error_line,
    require,
)
from cabm.files import remove_leftovers
from cabm.machine.cpu import cpu_threads
from cabm.machine.memory import keep_freed_memory
from cabm.pipeline.resume_states import RESUME_FILE
from cabm.project.params import Params, load_params
from cabm.project.paths import CURVES, DATA, METRICS, MODELS, RESULTS, TABLES, TIMING, project_root
from cabm.project.sections import TrainingSettings
from cabm.tracking.provenance import params_hash
from cabm.tracking.runs import open_run
from cabm.tracking.tracker import Tracker
from cabm.training.group import ALONE, Group
from cabm.training.launch import end_at_once, is_worker, joined, launch, launches, report_failure

_STALE_SECONDS = 3600.0
_EXPECTED = (InputError, TrainingDiverged, PeerLost, WorkerFailed, SafetensorError, OSError, MemoryError)
_NO_ACCESS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class Stage:
    """One run of a stage.

    Attributes:
        name: name of the stage in dvc.yaml and of its section in params.yaml.
        params: all of params.yaml.
        tracker: records the run beside DVC's files.
        group: the processes that run this stage together; one of them writes the outs.
        data: folder of the stores; like all folders, relative to the working directory.
        models, tables, metrics, curves, results: folders of outs.
        timing: folder of durations. No stage depends on it, because a time does not change a result.
    """

    name: str
    params: Params
    tracker: Tracker
    group: Group = ALONE
    data: Path = DATA
    models: Path = MODELS
    tables: Path = TABLES
    metrics: Path = METRICS
    curves: Path = CURVES
    timing: Path = TIMING
    results: Path = RESULTS

    def settings(self) -> Any:
        """Return this stage's section of params.yaml."""
        return getattr(self.params, self.name)

    def store(self, part: str) -> PackedStore:
        """Open a packed store: ``train``, ``validation`` or ``test/<name>``."""
        return PackedStore.open(self.data / part)

    def resume_file(self, inputs: dict[str, Any]) -> Path:
        """Return the path of this stage's resume state.

        The folder's name is a fingerprint of params and inputs, so that a run with others does not resume
        from this state. The folder is outside DVC's outs, which DVC deletes.

        Args:
            inputs: everything besides params that the result depends on, as JSON values.
        """
        sections = {
            name: getattr(self.params, name).model_dump(mode="json") for name in ("model", self.name)
        }
        described = {"version": __version__, "sections": sections, "inputs": inputs}
        described["precision"] = str(self.params.runtime.autocast())
        text = json.dumps(described, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        return project_root() / ".resume" / self.name / fingerprint / RESUME_FILE


def run_stage(name: str, body: Callable[[Stage], None]) -> int:
    """Run a stage in the working directory and return its exit status.

    Errors are printed in one line, with CABM_DEBUG=1 after their traceback. After Ctrl-C or SIGTERM the
    status is not zero, so that DVC never records half a result. In a worker process a failure ends the
    process.

    Args:
        name: the stage's name in dvc.yaml.
        body: computes the stage and writes its outs.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):  # shells start background jobs with SIGINT ignored
        signal.signal(number, _interrupt)
    status = _try(name, body)
    if status and is_worker():
        end_at_once(status)
    return status


def _try(name: str, body: Callable[[Stage], None]) -> int:
    """Run a stage, print one line if it fails, and return its exit status."""
    try:
        require(name, *PIPELINE)
        params = load_params()
        trains = isinstance(getattr(params, name), TrainingSettings)
        if trains and launches(params.runtime):
            launch(params.runtime, name)
            return 0
        with joined(params.runtime) if trains else nullcontext(ALONE) as group:
            _run(name, body, params, group)
    except _EXPECTED as error:
        if debugging():
            traceback.print_exc()
        message = error_line(error) + _advice(error)
        if not report_failure(error, message):
            print(f"{name}: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if not is_worker():
            print(f"{name}: interrupted; run `dvc repro` again to continue", file=sys.stderr)
        return 130
    return 0


def _run(name: str, body: Callable[[Stage], None], params: Params, group: Group) -> None:
    """Run a stage's body in this process; the leading process records the run."""
    # how a run is recorded does not change its results
    everything = params.model_dump(mode="json", exclude={"tracking", "serving"})
    torch.set_num_threads(cpu_threads(params.runtime.threads, group.local_size))
    section = getattr(params, name)
    logged = {
        "model": params.model.model_dump(mode="json"),
        "quantization": params.quantization.model_dump(mode="json"),
        name: section.model_dump(mode="json"),
    }
    with open_run(
        params.tracking if group.leads else params.tracking.model_copy(update={"enabled": False}),
        stage=name,
        params=logged,
        tags=_environment() | {"processes": str(group.size)},
        pipeline_key=params_hash(everything),
        pipeline_title=f"{params.model.name} x{params.model.scale}",
        pipeline_params=everything,
        data_hash=None if name == "prepare" else data_hash(DATA),  # prepare replaces the data
    ) as tracker:
        if isinstance(section, TrainingSettings):
            keep_freed_memory()
        if group.leads:
            _remove_leftovers(name)
        body(Stage(name, params, tracker, group))


def _remove_leftovers(name: str) -> None:
    """Remove temporary files of killed runs of this stage."""
    for out in (MODELS / name, METRICS / f"{name}.json", CURVES / f"{name}.csv", TIMING / f"{name}.json"):
        remove_leftovers(out)  # DVC lets one process at a time write an out
    for folder in project_root().glob(".resume/*/*"):  # experiments share these folders
        remove_leftovers(folder / RESUME_FILE, older_than_s=_STALE_SECONDS)


def _advice(error: Exception) -> str:
    """Return advice for errors of the system, whose messages have none."""
    if isinstance(error, MemoryError):
        return "; lower batch_size, patch or the model's options"
    if isinstance(error, OSError) and error.errno in _NO_ACCESS:
        return "; free space or allow access, then run `dvc repro` again to continue"
    return ""


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _environment() -> dict[str, str]:
    return {"version": __version__, "torch": torch.__version__, "cpus": str(os.cpu_count())}
