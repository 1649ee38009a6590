"""Old resume states are removed, and those in use are kept."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cabm.pipeline.resume_states import KEPT_STATES, RESUME_FILE, remove_old_states

DAY = 86400


def state(stage: Path, name: str, *, days: float, content: bytes | None = b"state") -> Path:
    """Make a run's folder, written ``days`` ago."""
    folder = stage / name
    folder.mkdir(parents=True)
    written = [folder]
    if content is not None:
        (folder / RESUME_FILE).write_bytes(content)
        written.append(folder / RESUME_FILE)
    for path in written:
        os.utime(path, (time.time() - days * DAY,) * 2)
    return folder


def left(stage: Path) -> set[str]:
    return {path.name for path in stage.iterdir()}


def test_the_newest_old_states_are_kept(tmp_path: Path) -> None:
    own = state(tmp_path, "own", days=400)
    for number in range(2, KEPT_STATES + 4):
        state(tmp_path, f"old{number}", days=number)
    remove_old_states(own / RESUME_FILE)
    assert left(tmp_path) == {"own", *(f"old{number}" for number in range(2, KEPT_STATES + 2))}
    assert (own / RESUME_FILE).read_bytes() == b"state"


def test_all_states_of_the_last_day_are_kept(tmp_path: Path) -> None:
    running = [state(tmp_path, f"running{number}", days=0.9).name for number in range(KEPT_STATES + 3)]
    state(tmp_path, "old", days=2)
    remove_old_states(tmp_path / "not begun" / RESUME_FILE, keep=0)
    assert left(tmp_path) == set(running)


def test_folders_of_finished_runs_are_removed_and_do_not_count(tmp_path: Path) -> None:
    for number in range(KEPT_STATES + 2):
        state(tmp_path, f"finished{number}", days=2, content=None)
    state(tmp_path, "finished today", days=0, content=None)
    state(tmp_path, "abandoned", days=50)
    remove_old_states(tmp_path / "own" / RESUME_FILE)
    assert left(tmp_path) == {"finished today", "abandoned"}


def test_a_first_run_has_nothing_to_remove(tmp_path: Path) -> None:
    remove_old_states(tmp_path / "no" / "such" / RESUME_FILE)
    assert not list(tmp_path.iterdir())
