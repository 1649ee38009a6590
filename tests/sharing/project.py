"""A temporary project: the repository's code, tiny photographs, tiny params."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import yaml
from skimage import data as photographs

from tests.conftest import REPOSITORY

CODE = ("cabm", "stages", "dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml")
OUTS = ("data/prepared", "models", "tables", "results")


@dataclass(frozen=True)
class Clone:
    """A clone of a project, and the environment of its commands."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *command: str, fails: bool = False, **variables: str) -> str:
        """Run a command in the clone; return its output."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**self.environment, "PYTHONPATH": str(self.root), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3600,
        )
        assert (done.returncode != 0) == fails, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def dvc(self, *arguments: str, fails: bool = False, **variables: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, fails=fails, **variables)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def clone(self, root: Path) -> Clone:
        self.run("git", "clone", "--quiet", str(self.root), str(root))
        return replace(self, root=root)

    def with_environment(self, **variables: str) -> Clone:
        return replace(self, environment={**self.environment, **variables})

    def contents(self, *folders: str) -> dict[str, str]:
        """Return a hash of every file in some folders, by path."""
        files = [path for folder in folders for path in (self.root / folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): sha256(path) for path in sorted(files)}


def clone_with_cache(source: Clone, root: Path) -> Clone:
    """Return a clone with its own copy of DVC's cache, and all outs in the workspace."""
    clone = source.clone(root)
    shutil.copytree(source.root / ".dvc" / "cache", root / ".dvc" / "cache")
    shutil.copytree(source.root / "data" / "raw", root / "data" / "raw")
    clone.dvc("checkout")
    return clone


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def surroundings(home: Path) -> dict[str, str]:
    """Return an environment without settings of the user or the machine."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Somebody\n\temail = somebody@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    return kept | {
        "HOME": str(home),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "dvc-system"),
        "DVC_SITE_CACHE_DIR": str(home / "dvc-site"),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",  # a busy server may take long
        "GIT_CONFIG_NOSYSTEM": "1",
        "OMP_NUM_THREADS": "1",
    }


def make_project(root: Path, environment: Mapping[str, str]) -> Clone:
    """Make a git and DVC repository of the tested code, with no stage run yet."""
    root.mkdir(parents=True)
    for name in CODE:
        source = REPOSITORY / name
        if source.is_dir():
            # with the loops that numba has compiled, so that not every project compiles them
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("*.pyc"))
        else:
            shutil.copy(source, root / name)
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / name, root / ".dvc" / name)
    write_params(root, tiny_params())
    project = Clone(root, environment)
    project.git("init", "--quiet")
    project.commit("Start")
    write_photographs(root / "data" / "raw")
    return project


def tiny_params() -> dict[str, Any]:
    training = {"steps": 10, "batch_size": 4, "patch": 12, "learning_rate": 1e-3, "validate_every": 5}
    quantized = training | {"learning_rate": 1e-4, "alpha_learning_rate": 1e-2}
    raw = "data/raw"
    return {
        "model": {"name": "edsr", "scale": 2, "options": {"edsr": {"num_features": 8, "num_blocks": 1}}},
        "quantization": {
            "search_space": [4, 6, 8],
            "weight_bits": 8,
            "quantize_ends": False,
            "skip": "quantized",
            "after_relu": "symmetric",
            "weight_granularity": "tensor",
        },
        "runtime": {"threads": 1, "precision": "fp32"},
        "tracking": {"log_every": 1},
        "prepare": {
            "train": [{"source": "folder", "path": f"{raw}/train"}],
            "validation": {"source": "folder", "path": f"{raw}/validation"},
            "test": [{"source": "folder", "name": "zoo", "path": f"{raw}/test"}],
        },
        "full_precision": dict(training),
        "pams": dict(quantized),
        "cadyq": quantized | {"selector_learning_rate": 0.05, "w_bit": 0.1},
        "edge_to_bit": {"tile": 24, "stride": 22, "bypass": {"max_loss_db": 0.0}},
        "cabm": dict(quantized),
        "evaluate": {"tile": 24, "stride": 22},
    }


def write_params(root: Path, params: dict[str, Any]) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def write_photographs(folder: Path) -> None:
    astronaut, cat, coffee = photographs.astronaut(), photographs.chelsea(), photographs.coffee()
    parts = {
        "train/astronaut.png": astronaut[:160, 150:310],
        "train/cat.png": cat[60:220, 100:260],
        "validation/coffee.png": coffee[100:228, 200:328],
        "test/rocket.png": astronaut[300:428, 200:328],
        "test/cat.png": cat[100:228, 200:328],
    }
    for name, image in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(folder / name, image)
