"""The base install upscales; what needs more says which extra to install."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cabm.errors import EXTRAS, InputError, error_line, require
from tests.conftest import REPOSITORY
from tests.upscaling.helpers import tiny_model

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Distributions that are imported by another name.
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage", "scikit-learn": "sklearn"}
# Dependencies of a base dependency or an extra, without which the latter does not install.
BROUGHT_ALONG = {"click": "typer", "llvmlite": "numba", "markupsafe": "jinja2", "pyarrow": "ray"}
# The packages that may import an extra's modules as they are imported themselves. All others import such
# modules inside functions, so that the base install can do everything else.
AT_IMPORT = {"reporting": {"plots", "pipeline"}, "web": {"plots", "web"}}
AT_IMPORT_FILES = {
    "cabm/engine/onnx_graph.py": {"onnx"},
    "cabm/engine/onnx_models.py": {"onnx"},
    "cabm/project/yaml_file.py": {"pipeline"},
}
BLOCKED = sorted({module for modules in EXTRAS.values() for module in modules} | {"imageio", "torchvision"})


def modules_of(requirements: list[str]) -> set[str]:
    """Return the modules of requirements, with those of the extras of this package they name."""
    found: set[str] = set()
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        if name[0] == "cabm":
            for extra in re.findall(r"[\w-]+", requirement.partition("[")[2].partition("]")[0]):
                found |= modules_of(PROJECT["optional-dependencies"][extra])
        else:
            found.add(MODULES.get(name[0], name[0].replace("-", "_")))
    return found


BASE = modules_of(PROJECT["dependencies"])


def third_party(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Yield the other packages that a file imports, whether outside functions, and the line.

    Imports for type checkers only do not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            inside |= set(ast.walk(node))
    for_types = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types or not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            root = name.partition(".")[0]
            if root not in sys.stdlib_module_names and root not in ("cabm", ""):
                yield BROUGHT_ALONG.get(root, root), node not in inside, node.lineno


def test_base_stays_base() -> None:
    wrong = []
    for path in sorted((REPOSITORY / "cabm").rglob("*.py")):
        file = path.relative_to(REPOSITORY).as_posix()
        allowed = AT_IMPORT_FILES.get(file, AT_IMPORT.get(file.split("/")[1], set()))
        free = BASE | {module for extra in allowed for module in EXTRAS[extra]}
        for module, at_import, line in third_party(path):
            if module in free:
                continue
            known = any(module in modules for modules in EXTRAS.values())
            if at_import:
                wrong.append(f"{file}:{line} imports {module} outside a function")
            elif not known:
                wrong.append(f"{file}:{line} imports {module}, which no extra of cabm.errors.EXTRAS has")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_installs_the_modules_that_it_is_named_for(extra: str) -> None:
    installed = modules_of(PROJECT["optional-dependencies"][extra])
    assert {BROUGHT_ALONG.get(module, module) for module in EXTRAS[extra]} <= installed


def test_a_missing_module_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cabm.errors.find_spec", lambda module: None)
    with pytest.raises(InputError) as raised:
        require("cabm report", "jinja2", "matplotlib")
    assert (
        str(raised.value) == 'cabm report: jinja2, matplotlib not installed; pip install "cabm[pipeline]"'
    )
    error = ModuleNotFoundError("No module named 'ray.data'", name="ray.data")
    assert error_line(error, "a.png") == "a.png: No module named 'ray.data'; pip install \"cabm[ray]\""
    assert "pip install" not in error_line(ModuleNotFoundError("No module named 'x'", name="x"))


# Runs commands one after the other in an interpreter without the modules of the extras.
WITHOUT_EXTRAS = """
import contextlib, importlib.util, io, json, runpy, sys
hidden, commands = json.loads(sys.argv[1])

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

found = importlib.util.find_spec

def find_spec(name, package=None):
    return None if name.partition(".")[0] in hidden else found(name, package)

importlib.util.find_spec = find_spec
sys.meta_path.insert(0, Hidden())
results = []
for script, *arguments in commands:
    sys.argv = [script, *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if script == "cabm":
                from cabm.cli.main import main
                main()
            else:
                runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""
NEEDS = {
    ("cabm", "upscale", "photo.png", "--bit-map", "bits.png"): "plots",
    ("cabm", "table", "plot", "edsr_x4", "-o", "table.png"): "plots",
    ("cabm", "report"): "pipeline",
    ("cabm", "bench", "train"): "pipeline",
    ("cabm", "upscale", "photo.png", "-m", "selectors"): "pipeline",
    ("cabm", "export", "edsr_x4", "-o", "model.onnx"): "onnx",
    ("cabm", "cluster", "upscale", ".", "-o", "out"): "ray",
} | {(str(script),): "pipeline" for script in sorted((REPOSITORY / "stages").glob("*.py"))}
NEED_NOTHING = (
    ("cabm", "upscale", "photo.png", "--report"),
    ("cabm", "model", "show", "edsr_x4"),
    ("cabm", "table", "show", "edsr_x4"),
    ("cabm", "preset", "--list"),
)


def test_the_base_install_upscales_and_everything_else_names_its_extra(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    tiny_model(tmp_path / "selectors", "cadyq")
    commands = [*NEEDS, *NEED_NOTHING]  # those that must not write anything first
    script = [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps([BLOCKED, commands])]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = dict(zip(commands, json.loads(done.stdout), strict=True))
    for command, extra in NEEDS.items():
        status, _, err = results[command]
        assert status == 1, (command, results[command])
        lines = [line for line in err.splitlines() if "compiling for this CPU" not in line]
        assert len(lines) == 1, (command, err)
        assert lines[0].endswith(f'pip install "cabm[{extra}]"'), (command, err)
    for command in NEED_NOTHING:
        assert results[command][0] == 0, (command, results[command])
    assert {file.name for file in tmp_path.iterdir()} == {"photo.png", "photo_x4.png", "selectors"}
    with Image.open(tmp_path / "photo_x4.png") as upscaled:
        assert upscaled.size == (160, 96)
