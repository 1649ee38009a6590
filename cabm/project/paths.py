"""The folders of a project."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path("data/prepared")
MODELS = Path("models")
TABLES = Path("tables")
METRICS = Path("metrics")
CURVES = Path("curves")
TIMING = Path("timing")
RESULTS = Path("results")


def project_root() -> Path:
    """Return the repository's directory.

    DVC sets DVC_ROOT to the real repository, even if ``dvc exp run --temp`` or ``--queue`` works in a
    copy. Without it, the repository is the nearest parent of the working directory that has ``.dvc`` or
    ``.git``, or else the working directory.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir() or (folder / ".git").exists():
            return folder
    return here
