"""Resume states that lie about: which are kept, which go."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

RESUME_FILE = "state.safetensors"


KEPT_STATES = 4
"""Resume states of a stage that stay beside its own: params that somebody may come back to."""


_DAY_SECONDS = 86400.0


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
