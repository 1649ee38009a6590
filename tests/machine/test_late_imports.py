"""Modules that are imported late: nothing happens until they are used, and then everything does."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from cabm.machine.late_imports import imported_late

FILES = {
    "__init__.py": "from late_library import leaf, package, plain\n",
    "plain.py": "loads = 1\n",
    "leaf.py": (
        "import late_library.log, time\n"
        "late_library.log.lines.append('leaf')\n"
        "import late_library.around\n"
        "time.sleep(0.2)\n"
        "value = 7\n"
        "def __getattr__(name):\n"
        "    if name == 'computed': return 8\n"
        "    raise AttributeError(name)\n"
    ),
    "around.py": "from late_library import leaf\nfound = hasattr(leaf, 'value')\n",
    "log.py": "lines = []\n",
    "package/__init__.py": "import late_library.log\nlate_library.log.lines.append('package')\n",
    "package/inner.py": "value = 9\n",
}
LATE = {"late_library.leaf", "late_library.package"}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name, text in FILES.items():
        path = tmp_path / "late_library" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    with imported_late(LATE):
        module = importlib.import_module("late_library")
    assert sys.meta_path == before
    yield module
    for name in [name for name in sys.modules if name.startswith("late_library")]:
        del sys.modules[name]


def executed() -> list[str]:
    return importlib.import_module("late_library.log").lines


def test_a_module_is_executed_when_it_is_used(library):
    assert library.plain.loads == 1
    assert executed() == []
    assert (library.leaf.value, library.leaf.computed) == (7, 8)
    assert executed() == ["leaf"]
    assert type(library.leaf) is ModuleType
    with pytest.raises(AttributeError, match="missing"):
        _ = library.leaf.missing


def test_a_module_that_is_being_executed_shows_what_it_has(library):
    assert library.leaf.value == 7
    assert library.around.found is False, "as in an ordinary import around a circle"


def test_a_submodule_executes_its_package_first(library):
    inner = importlib.import_module("late_library.package.inner")
    assert inner.value == library.package.inner.value == 9
    assert executed() == ["package"]


def test_threads_execute_a_module_once(library):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: library.leaf.value, range(4))) == [7] * 4
    assert executed() == ["leaf"]


def test_pytorch_is_whole_when_all_is_executed():
    script = (
        "import sys\n"
        "from cabm.machine.late_imports import UNUSED, torch_in_part\n"
        "with torch_in_part():\n"
        "    import torch\n"
        "for name in UNUSED:\n"
        "    getattr(sys.modules.get(name), 'anything', None)\n"
        "numbers = torch.rand(3, generator=torch.Generator().manual_seed(1))\n"
        "program = torch.export.export(torch.nn.Linear(3, 2), (numbers,))\n"
        "assert program.module()(numbers).shape == (2,)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_asking_every_module_for_its_file_executes_none(library):
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    assert any(str(file).endswith("late_library/leaf.py") for file in files)
    assert executed() == []
