"""What every stage script shares: params, tracking, threads, errors, and where things lie."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cabm import __version__
from cabm.config import Params, TrainingSettings, cpu_threads, load_params
from cabm.data.store import PackedStore
from cabm.distributed import (
    ALONE,
    Group,
    end_at_once,
    is_worker,
    joined,
    launch,
    launches,
    report_failure,
)
from cabm.errors import InputError, PeerLost, TrainingDiverged, WorkerFailed
from cabm.files import remove_leftovers
from cabm.memory import keep_freed_memory
from cabm.provenance import params_hash, project_root
from cabm.tracker import Tracker
from cabm.tracking import open_run

DATA = Path("data/prepared")
MODELS = Path("models")
TABLES = Path("tables")
METRICS = Path("metrics")
CURVES = Path("curves")
TIMING = Path("timing")
RESULTS = Path("results")
RESUME_FILE = "state.safetensors"
KEPT_STATES = 4
"""Resume states of a stage that stay beside its own: params that somebody may come back to."""
_STALE_SECONDS = 3600.0
_DAY_SECONDS = 86400.0
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class Stage:
    """One run of a stage.

    Attributes:
        name: its name in dvc.yaml.
        params: all of params.yaml.
        tracker: where figures and metrics go beside DVC's files.
        group: the processes that run this stage together; one writes the outs.
        data: train, validation and test stores.
        models, tables, metrics, curves, results: folders of outs, relative to the working directory.
        timing: the same of what each stage took. No stage depends on it: another time is no other result.
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
        """Return this stage's own section of params.yaml."""
        return getattr(self.params, self.name)

    def store(self, part: str) -> PackedStore:
        """Open a packed store: ``train``, ``validation`` or ``test/<name>``."""
        return PackedStore.open(self.data / part)

    def resume_file(self, inputs: dict[str, Any]) -> Path:
        """Return where this stage keeps its resume state.

        The name is a fingerprint of everything that the result depends on, so that a run with other params
        or inputs never picks up this one's state; it lies outside DVC's outs, which DVC deletes.
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
    """Run a stage and return its exit status.

    Input errors print one line. Ctrl-C and SIGTERM exit non-zero, so that DVC never records half a result.
    One of several processes that fails does not return, but ends.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: background shells hand it on ignored
        signal.signal(number, _interrupt)
    status = _try(name, body)
    if status and is_worker():
        end_at_once(status)
    return status


def _try(name: str, body: Callable[[Stage], None]) -> int:
    """Run a stage, say in one line why it failed, and return its exit status."""
    try:
        params = load_params()
        trains = isinstance(getattr(params, name), TrainingSettings)
        if trains and launches(params.runtime):
            launch(params.runtime, name)
            return 0
        with joined(params.runtime) if trains else nullcontext(ALONE) as group:
            _run(name, body, params, group)
    except (InputError, TrainingDiverged, SafetensorError, PeerLost, WorkerFailed) as error:
        return _fail(name, error, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        then = "; make room or access, then `dvc repro` goes on" if error.errno in _NO_ROOM else ""
        return _fail(name, error, f"{where}{error.strerror or error}{then}")
    except MemoryError as error:
        reason = " ".join(str(error).split())
        return _fail(
            name,
            error,
            f"not enough memory ({reason[:200]}); lower batch_size, patch or the model's options",
        )
    except KeyboardInterrupt:
        if not is_worker():
            print(f"{name}: interrupted; run `dvc repro` again to continue", file=sys.stderr)
        return 130
    return 0


def _run(name: str, body: Callable[[Stage], None], params: Params, group: Group) -> None:
    """Run a stage's body in this process, recorded if the process leads."""
    # what is recorded and how leaves the pipeline the same
    everything = params.model_dump(mode="json", exclude={"tracking", "serving"})
    torch.set_num_threads(cpu_threads(params.runtime, group.local_size))
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
        data_hash=None if name == "prepare" else data_hash(DATA),  # it replaces what is there
    ) as tracker:
        if isinstance(section, TrainingSettings):
            torch.manual_seed(section.seed)
            keep_freed_memory()
        if group.leads:
            _remove_leftovers(name)
        body(Stage(name, params, tracker, group))


def data_hash(directory: Path) -> str | None:
    """Return one hash of all packed stores under a directory; None where there are none.

    Raises:
        InputError: a store is damaged.
    """
    stores = sorted(path.parent for path in directory.rglob("index.json"))
    lines = [f"{store.relative_to(directory)} {PackedStore.open(store).sha256}" for store in stores]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def remove_old_states(own: Path, *, keep: int = KEPT_STATES) -> None:
    """Remove resume states of a stage that were left behind: broken off, and then tried with other params.

    What was written to in the last day stays, as another experiment may be at it; of the rest the newest.
    Folders of runs that ended well, which hold none, go too.

    Args:
        own: the resume file of this run, whose folder stays. The folders beside it are looked at.
        keep: how many of those that hold a state stay.
    """
    states, finished = {}, []
    for folder in own.parent.parent.glob("*/"):
        with suppress(FileNotFoundError):  # another experiment was faster
            changed = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if folder == own.parent or time.time() - changed < _DAY_SECONDS:
                continue
            if (folder / RESUME_FILE).exists():
                states[folder] = changed
            else:
                finished.append(folder)
    newest_first = sorted(states, key=lambda folder: states[folder], reverse=True)
    for folder in (*newest_first[keep:], *finished):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(name: str) -> None:
    """Remove what killed runs of this stage wrote aside."""
    for out in (MODELS / name, METRICS / f"{name}.json", CURVES / f"{name}.csv", TIMING / f"{name}.json"):
        remove_leftovers(out)  # DVC lets one process at a time make an out
    for folder in project_root().glob(".resume/*/*"):  # experiments share these
        remove_leftovers(folder / RESUME_FILE, older_than_s=_STALE_SECONDS)


def _fail(name: str, error: Exception, message: str) -> int:
    if not report_failure(error, message):
        print(f"{name}: error: {message}", file=sys.stderr)
    return 1


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _environment() -> dict[str, str]:
    return {"version": __version__, "torch": torch.__version__, "cpus": str(os.cpu_count())}
