"""The dependencies in dvc.yaml are those that the stages import."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
# These record a run and do not change its results, so an edit must not rerun a stage.
RECORDING = {REPOSITORY / "cabm" / "tracking", REPOSITORY / "cabm" / "pipeline" / "registering.py"}
FACE = REPOSITORY / "cabm" / "__init__.py"  # imports lazily, and no stage uses it


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


def all_imports(path: Path) -> set[Path]:
    """Return every file of the package that running ``path`` can execute, and that has code."""
    seen: set[Path] = set()
    left = [path]
    while left:
        for file in imports(left.pop()) - seen:
            if RECORDING & {file, *file.parents} or file == FACE:
                continue
            seen.add(file)
            left.append(file)
    return {
        file for file in seen if file != REPOSITORY / "cabm" / "__init__.py" and file.name != "__init__.py"
    }


def code_dependencies(stage: str) -> set[Path]:
    """Return the files and folders of code that a stage lists."""
    listed = {REPOSITORY / name for name in STAGES[stage]["deps"]}
    return {path for path in listed if path.is_relative_to(REPOSITORY / "cabm")}


@pytest.mark.parametrize("stage", STAGES)
def test_every_import_of_a_stage_is_a_dependency(stage: str) -> None:
    script = REPOSITORY / STAGES[stage]["cmd"].split()[-1]
    listed = code_dependencies(stage)
    assert str(script.relative_to(REPOSITORY)) in STAGES[stage]["deps"]
    missing = {file for file in all_imports(script) if not listed & {file, *file.parents}}
    assert sorted(str(file.relative_to(REPOSITORY)) for file in missing) == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_code_dependency_is_imported(stage: str) -> None:
    imported = all_imports(REPOSITORY / STAGES[stage]["cmd"].split()[-1])
    idle = {
        path
        for path in code_dependencies(stage)
        if not any({file, *file.parents} & {path} for file in imported)
    }
    assert sorted(str(path.relative_to(REPOSITORY)) for path in idle) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_own_section_of_params_alone(stage: str) -> None:
    params = STAGES[stage]["params"]
    own = stage
    assert own in params
    training = {"full_precision", "pams", "cadyq", "edge_to_bit", "cabm", "evaluate"}
    assert not (set(params) & training) - {own}
