"""The layers of the package: imports point down, never sideways or up."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# From the top. A package imports from the rows below its own, and from nothing on its own row.
LAYERS = (
    ("cli", "stages"),
    ("bench", "pipeline", "web"),
    ("reporting", "training"),
    ("cluster", "evaluation", "tracking"),
    ("upscaling",),
    ("checkpoints",),
    ("tables", "project"),
    ("engine", "tiling", "data"),
    ("models", "imaging"),
    ("quant", "files"),
    ("machine", "errors"),
)
LAYER = {name: height for height, row in enumerate(reversed(LAYERS)) for name in row}
FACE = {"__init__", "__main__"}


def package(module: str) -> str:
    """Return the package that a module belongs to: ``cabm.engine.grid`` -> ``engine``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_name(path: Path) -> str:
    """Return a file's module; a script of ``stages/`` counts as ``cabm.stages``."""
    relative = path.relative_to(REPOSITORY).with_suffix("")
    if relative.parts[0] == "stages":
        return "cabm.stages"
    return ".".join(part for part in relative.parts if part != "__init__" or len(relative.parts) == 2)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the modules of the package that a file imports, anywhere in it, and the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.startswith("cabm."))
        elif isinstance(node, ast.ImportFrom) and node.module == "cabm":
            names = (alias.name for alias in node.names)
            yield from ((f"cabm.{name}", node.lineno) for name in names if name in LAYER)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cabm."):
            yield node.module, node.lineno


def forbidden(importer: str, target: str) -> bool:
    """Whether a package may not import another."""
    return importer != target and LAYER[importer] <= LAYER[target]


FILES = sorted([*(REPOSITORY / "cabm").rglob("*.py"), *(REPOSITORY / "stages").glob("*.py")])


def test_every_package_has_a_layer() -> None:
    packages = {package(module_name(path)) for path in FILES}
    assert packages - FACE == set(LAYER)


def test_imports_point_down() -> None:
    wrong = []
    for path in FILES:
        importer = package(module_name(path))
        if importer in FACE:
            continue
        for target, line in imported(path):
            if forbidden(importer, package(target)):
                file = Path(*target.split(".")).with_suffix(".py")
                wrong.append(f"{path.relative_to(REPOSITORY)}:{line} may not import {file}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "target", "expected"),
    [
        ("engine", "models", False),
        ("models", "engine", True),
        ("engine", "tiling", True),
        ("cli", "errors", False),
        ("machine", "errors", True),
        ("quant", "quant", False),
    ],
)
def test_the_rule_itself(importer: str, target: str, expected: bool) -> None:
    assert forbidden(importer, target) is expected


def test_packages_open_with_a_caption() -> None:
    missing = [
        path
        for path in (REPOSITORY / "cabm").rglob("__init__.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert missing == []


def test_a_wheel_carries_every_data_file() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]
    listed = {
        file
        for name, globs in patterns.items()
        for pattern in globs
        for file in REPOSITORY.joinpath(*name.split(".")).glob(pattern)
        if file.is_file()
    }
    present = {file for file in (REPOSITORY / "cabm").rglob("*") if file.is_file()}
    assert {file for file in present if file.suffix not in (".py", ".pyc", ".nbi", ".nbc")} == listed
