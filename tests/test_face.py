"""What `import cabm` and `python -m cabm` give."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cabm
from tests.conftest import REPOSITORY


def python(*arguments: str) -> str:
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, cabm; print([name for name in ('torch', 'numpy', 'mlflow') if name in sys.modules])"
    assert python("-c", code) == "[]"


def test_what_surrounds_the_network_needs_no_pytorch() -> None:
    modules = (
        "imaging.bicubic",
        "imaging.pixels",
        "machine.threads",
        "tables.table",
        "tiling.edges",
        "upscaling.runners",
        "upscaling.streaming",
        "upscaling.tiles",
        "upscaling.window",
    )
    imports = "; ".join(f"import cabm.{module}" for module in modules)
    assert python("-c", f"{imports}; import sys; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("name", cabm.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(cabm, name) is not None
    assert name in dir(cabm)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        cabm.nothing  # noqa: B018


def test_the_package_runs_as_a_command() -> None:
    assert python("-m", "cabm", "--version") == f"cabm {cabm.__version__}"


def test_the_citation_names_this_version() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cabm.__version__}\n" in citation
