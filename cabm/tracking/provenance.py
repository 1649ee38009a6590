"""What names an experiment: its params, the revision of its code, and the files beside it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Mapping
from typing import Any

from cabm.files import atomic_write
from cabm.project.paths import project_root


def clone_id() -> str:
    """Return what tells this clone of the repository from others with the same code and params.

    Made at the first call and kept in ``.resume/clone-id``, which git ignores: all machines that work
    in one shared directory are one clone, two persons on one tracking server are not.

    Raises:
        OSError: the directory cannot be written.
    """
    from filelock import FileLock

    path = project_root() / ".resume" / "clone-id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                with atomic_write(path) as temporary:
                    temporary.write_text(uuid.uuid4().hex[:16])
    return path.read_text()


def params_hash(params: Mapping[str, Any]) -> str:
    """Return 16 hex digits that are equal for equal params, whatever the order of their keys."""
    text = json.dumps(params, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_tags() -> dict[str, str]:
    """Return ``baseline`` (the commit that the code started from) and ``dirty`` (``true`` when
    code, params or pipeline differ from it, so that the commit alone does not name them).

    What stages write themselves (``dvc.lock``, metrics) does not count. Empty without git.
    """
    head = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    sources = [f":(top,glob)**/*.{suffix}" for suffix in ("py", "yaml", "toml")]
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *sources)
    if head is None or changes is None:
        return {}
    return {"baseline": head, "dirty": "true" if changes else "false"}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # never in the way of the user's git
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
