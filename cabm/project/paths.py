"""Where things lie in a project: the folders of outs, and the repository itself."""

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

    Under DVC this is DVC_ROOT, which names the real repository also where ``dvc exp run --temp`` or
    ``--queue`` works in a copy; else the nearest parent of the working directory that has
    ``.dvc`` or ``.git``, else the working directory.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir() or (folder / ".git").exists():
            return folder
    return here
