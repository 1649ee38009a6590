"""Compiled code on disk: used by later processes, and never where it does not fit."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import numpy as np
import pytest
from filelock import FileLock
from numba.core.caching import IndexDataCacheFile
from numba.core.codegen import JITCPUCodegen

from cabm.machine import code_cache
from cabm.machine.compiled import jit

SOURCE = """
def double(x, out):
    for i in range(x.size):
        out[i] = x[i] * 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code_cache._report.cache_clear()
    yield tmp_path / "cache" / "cabm" / "compiled"
    code_cache._report.cache_clear()


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Callable]:
    (tmp_path / "loops.py").write_text(SOURCE)
    yield function_of(tmp_path / "loops.py")
    del sys.modules["loops"]


def function_of(path: Path) -> Callable:
    spec = importlib.util.spec_from_file_location("loops", path)
    module = sys.modules["loops"] = importlib.util.module_from_spec(spec)  # compiled code imports it
    spec.loader.exec_module(module)
    return module.double


def compilations(function: Callable) -> int:
    """Run a function as a new process would; return how many times it was compiled."""
    loop = jit(function)
    out = np.zeros(3, np.float32)
    loop(np.arange(3, dtype=np.float32), out)
    assert out.tolist() == [0, 2, 4]
    return sum(loop.stats.cache_misses.values())


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".nbi", ".nbc")]


def test_code_is_compiled_once_and_kept_in_the_users_cache_folder(double, folder, tmp_path):
    assert [compilations(double), compilations(double)] == [1, 0]
    assert {path.suffix for path in files(folder)} == {".nbi", ".nbc"}
    assert files(tmp_path) == files(folder), "nothing beside the source"


def test_the_folder_is_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert code_cache.code_folder() == Path("/home/someone/.cache/cabm/compiled")


def test_numbas_own_setting_comes_first(double, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "given"))
    assert [compilations(double), compilations(double)] == [1, 0]
    assert files(tmp_path / "given") and not folder.exists()


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "gone"])
def test_damaged_files_are_compiled_again(double, folder, suffix, damage):
    compilations(double)
    (path,) = [path for path in files(folder) if path.suffix == suffix]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"empty": b"", "cut": content[: len(content) // 2], "flipped": content}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    assert [compilations(double), compilations(double)] == [1, 0]


def test_every_cpu_has_its_own_code(double, monkeypatch):
    compilations(double)
    with monkeypatch.context() as other:
        other.setattr(JITCPUCodegen, "magic_tuple", lambda self: ("x86_64", "another", "+sse2"))
        assert [compilations(double), compilations(double)] == [1, 0]
    assert compilations(double) == 0


def test_code_that_cannot_be_loaded_is_compiled_again(double, monkeypatch):
    compilations(double)

    def fail(self, name):
        raise ModuleNotFoundError("the code needs a module that has moved")

    monkeypatch.setattr(IndexDataCacheFile, "_load_data", fail)
    assert compilations(double) == 1


def test_another_numba_compiles_again(double, monkeypatch):
    compilations(double)
    monkeypatch.setattr(numba, "__version__", "1000.0")
    assert [compilations(double), compilations(double)] == [1, 0]


def test_another_source_compiles_again(double, tmp_path):
    compilations(double)
    (tmp_path / "loops.py").write_text(SOURCE.replace("x[i] * 2", "x[i] + x[i]"))
    assert compilations(function_of(tmp_path / "loops.py")) == 1


def test_without_a_folder_code_is_compiled_at_every_start(double, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "cabm.machine"):
        assert [compilations(double), compilations(double)] == [1, 1]
    assert "no folder for the code (set NUMBA_CACHE_DIR)" in caplog.text


def test_a_full_disk_does_no_harm(double, monkeypatch):
    def full(self, key, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_cache._CheckedFiles, "save", full)
    assert [compilations(double), compilations(double)] == [1, 1]


def test_a_process_that_never_releases_its_lock_is_not_waited_for(double, folder, monkeypatch):
    compilations(double)
    for path in files(folder):
        path.unlink()
    (lock,) = folder.rglob("*.lock")
    monkeypatch.setattr(code_cache, "PATIENCE_SECONDS", 0.1)
    with FileLock(lock):
        assert compilations(double) == 1
    assert compilations(double) == 0


def test_compiling_is_reported_once_and_only_if_it_takes_long(double, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "cabm.machine"):
        monkeypatch.setattr(code_cache, "QUIET_SECONDS", 600.0)
        compilations(double)
        assert not caplog.records
        monkeypatch.setattr(code_cache, "QUIET_SECONDS", 0.0)
        loop = jit(double)
        for kind in (np.float64, np.int32):
            loop(np.zeros(3, kind), np.zeros(3, kind))
        assert compilations(double) == 0
    (record,) = caplog.records
    assert record.getMessage().startswith("compiling for this CPU, once: ")


@pytest.mark.parametrize("tested", [numba.__version__, "another"])
def test_kept_code_runs_in_a_process_that_never_compiles(tmp_path, tested):
    """Loading leaves out what compiling needs; code with memory, errors and functions runs all the same."""
    (tmp_path / "loops.py").write_text(
        "import math\nimport numpy as np\n"
        "def measure(x, out):\n"
        "    memory = np.empty(x.size, np.float32)\n"
        "    for i in range(x.size):\n"
        "        if x[i] < 0:\n"
        "            raise ValueError('negative')\n"
        "        memory[i] = math.exp(math.sqrt(x[i]))\n"
        "    out[:] = memory[::-1]\n"
    )
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, loops\n"
        "from cabm.machine import code_cache\n"
        "from cabm.machine.compiled import jit\n"
        "code_cache.TESTED_NUMBA = sys.argv[2]\n"
        "loop, x, out = jit(loops.measure), np.arange(4, dtype=np.float32), np.zeros(4, np.float32)\n"
        "loop(x, out)\n"
        "assert np.allclose(out, np.exp(np.sqrt(x))[::-1])\n"
        "try: loop(x - 1, out)\n"
        "except ValueError as error: assert str(error) == 'negative'\n"
        "else: raise AssertionError\n"
        "print(sum(loop.stats.cache_misses.values()), 'numba.np.arraymath' in sys.modules)\n"
    )
    command, environment = (
        [sys.executable, "-c", script, str(tmp_path), tested],
        os.environ | {"NUMBA_CACHE_DIR": ""},
    )
    found = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(2)
    ]
    assert found == ["1 True\n", f"0 {tested != numba.__version__}\n"]


CALLS = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, loops
from cabm.machine import code_cache
from cabm.machine.compiled import jit
code_cache.TESTED_NUMBA = sys.argv[2]
loops.total = jit(loops.total)
x, out = np.arange(4, dtype=np.float32), np.zeros(2)
hits = []
for loop in (loops.total, jit(loops.shifted))[: int(sys.argv[3])]:
    found = loop(x) if loop is loops.total else loop(x, out)
    hits.append(sum(loop.stats.cache_hits.values()))
assert loops.total(x) == 6 and (len(hits) == 1 or out.tolist() == [7, 8])
print(hits)
"""


def test_kept_code_is_found_by_a_loop_that_calls_it(tmp_path):
    """Only machine code of it is kept, which a loop that is compiled later can call, not inline."""
    (tmp_path / "loops.py").write_text(
        "def total(x):\n"
        "    sum = np.float64(0)\n"
        "    for i in range(x.size):\n"
        "        sum += x[i]\n"
        "    return sum\n"
        "def shifted(x, out):\n"
        "    for i in range(out.size):\n"
        "        out[i] = total(x) + i + 1\n"
        "import numpy as np\n"
    )

    def hits(tested: str, count: int) -> str:
        command = [sys.executable, "-c", CALLS, str(tmp_path), tested, str(count)]
        environment = os.environ | {"NUMBA_CACHE_DIR": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.strip()

    assert [hits(numba.__version__, count) for count in (1, 2, 2)] == ["[0]", "[1, 0]", "[1, 1]"]


def test_code_kept_by_earlier_versions_is_used(double, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(code_cache, "TESTED_NUMBA", "another")  # keeps what numba keeps
        compilations(double)
    assert compilations(double) == 0


def test_files_hold_no_more_than_machine_code(double, folder, monkeypatch):
    sizes = []
    for tested in ("another", numba.__version__):
        monkeypatch.setattr(code_cache, "TESTED_NUMBA", tested)
        compilations(double)
        (path,) = [path for path in files(folder) if path.suffix == ".nbc"]
        sizes.append(path.stat().st_size)
        path.unlink()
    assert sizes[1] < sizes[0] / 1.5


def test_of_two_processes_one_compiles(tmp_path, double):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, loops\n"
        "from cabm.machine.compiled import jit\n"
        "loop = jit(loops.double)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "loop(np.zeros(3, np.float32), np.zeros(3, np.float32))\n"
        "print(sum(loop.stats.cache_misses.values()))\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": ""}
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [int(process.communicate(timeout=300)[0]) for process in processes]
    assert sorted(found) == [0, 1]


def test_the_kept_loops_of_the_engine_load_without_scipy():
    """Code that refers to methods like ``max`` of an array makes numba import it, 0.3 s at every start."""
    script = (
        "import sys\n"
        "from cabm.engine import bicubic_base, byte_rows, float_rows, float_winograd, fused\n"
        "from cabm.engine import pixel_conv, tap_sums\n"
        "fused.compiled(), byte_rows.compiled(), float_rows.compiled(), bicubic_base.compiled()\n"
        "float_winograd.compiled(float_winograd.widest())\n"
        "[module.compiled(pixel_conv.widest()) for module in (pixel_conv, tap_sums)]\n"
        "print([name for name in ('scipy.linalg', 'numba.np.arraymath') if name in sys.modules])\n"
    )
    for _ in range(2):  # the first process may compile, which imports everything
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
