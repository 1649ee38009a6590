"""dvc.yaml against what the stages really import and read."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

from cabm.models import BACKBONES
from tests.conftest import REPOSITORY

STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
# They record what a stage does and never change what it computes: an edit must not retrain.
RECORDING_ONLY = {"tracking", "tracker", "tracking_store", "outbox", "provenance", "serving"}
# Only the chosen backbone's file is a dependency: cabm/models/${model.name}.py
BACKBONE_FILES = {f"cabm/models/{name}.py" for name in BACKBONES}
CHOSEN_BACKBONE = "cabm/models/${model.name}.py"


def module_file(module: str) -> Path | None:
    """Return the file of a module of the package, None for anything else."""
    path = REPOSITORY / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if module.split(".")[0] == "cabm" and candidate.exists():
            return candidate
    return None


@cache
def imports(path: Path) -> frozenset[Path]:
    """Return the package's files that a file imports when it runs, without following them."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):  # a package's __init__ runs before its modules
                file = module_file(".".join(parts[:end]))
                if file is not None:
                    found.add(file)
    return frozenset(found)


def all_imports(path: Path) -> set[str]:
    """Return every file of the package that running ``path`` can execute, relative to the repository."""
    seen: set[Path] = set()
    left = [path]
    while left:
        for file in imports(left.pop()) - seen:
            if file.stem in RECORDING_ONLY:
                continue
            seen.add(file)
            left.append(file)
    return {str(file.relative_to(REPOSITORY)) for file in seen}


def code_dependencies(script: str) -> set[str]:
    """Return the code that dvc.yaml should list for a stage script."""
    needed = all_imports(REPOSITORY / script) | {script}
    if needed & BACKBONE_FILES:
        needed = (needed - BACKBONE_FILES) | {CHOSEN_BACKBONE}
    return {file for file in needed if (REPOSITORY / file).name == CHOSEN_BACKBONE or _has_code(file)}


def _has_code(file: str) -> bool:
    return "$" in file or bool((REPOSITORY / file).read_text().strip())


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_what_the_stage_imports(stage: str) -> None:
    script = STAGES[stage]["cmd"].split()[-1]
    listed = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert sorted(listed) == sorted(code_dependencies(script))


@pytest.mark.parametrize("stage", STAGES)
def test_own_section_of_params_is_a_dependency_and_other_steps_are_not(stage: str) -> None:
    params = STAGES[stage]["params"]
    own = stage
    assert own in params
    training = {"full_precision", "pams", "cadyq", "edge_to_bit", "cabm", "evaluate"}
    assert not (set(params) & training) - {own}
