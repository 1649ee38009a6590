"""Removal of old resume states."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

RESUME_FILE = "state.safetensors"

KEPT_STATES = 4
"""Number of a stage's resume states that are kept besides its own, for a return to their params."""

_DAY_SECONDS = 86400.0


def remove_old_states(own: Path, *, keep: int = KEPT_STATES) -> None:
    """Remove resume states of interrupted runs of a stage with other params.

    States of the last day are kept, because another experiment may use them, and so are the newest of the
    others. Folders without a state, which finished runs leave behind, are removed after a day.

    Args:
        own: the resume file of this run, whose folder is kept. The other folders are beside it.
        keep: number of older states to keep.
    """
    states, finished = {}, []
    for folder in own.parent.parent.glob("*/"):
        with suppress(FileNotFoundError):  # another experiment removed it
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
