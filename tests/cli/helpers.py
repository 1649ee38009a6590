"""What the tests of commands share."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.upscaling.helpers import photo


def save(path: Path, height: int = 40, width: int = 50, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(height, width)).save(path, **options)
    return path


def check_refusal(result: tuple[int, str, str], message: str) -> None:
    """Check that a command printed one line of error with this message, and wrote nothing."""
    code, out, err = result
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith("cabm: ")
    assert message in err
    assert "wrote" not in out
