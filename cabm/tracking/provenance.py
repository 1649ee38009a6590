"""Identity of a run: the clone it ran in, its params and the revision of its code."""

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
    """Return the random id of this clone of the repository.

    The first call writes it to ``.resume/clone-id``, which git ignores. It keeps the runs of two clones
    with the same params apart on one tracking server. Machines that share a directory share the id.

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
    """Return a hash of nested params as 16 hex digits; the order of keys does not matter."""
    text = json.dumps(params, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_tags() -> dict[str, str]:
    """Return the tags ``baseline`` (the commit) and ``dirty`` (``true`` or ``false``).

    A run is dirty if Python, YAML or TOML files differ from the commit. Outputs of stages (``dvc.lock``,
    metrics) do not count. Without git there are no tags.
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
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # do not lock the user's git
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
