from __future__ import annotations

from pathlib import Path

import pytest

from cabm.errors import InputError
from cabm.imaging.formats import OUTPUT_FORMATS, SUFFIXES, is_image, missing_operation, output_format
from cabm.imaging.search import is_unsupported


def test_names_of_images():
    for suffix, entry in SUFFIXES.items():
        readable = missing_operation(entry, "load") is None
        assert is_image(Path(f"a{suffix}")) == is_image(Path(f"A{suffix.upper()}")) == readable
        assert is_unsupported(f"a{suffix}") != readable  # what is not taken is counted
    assert not any(is_image(Path(name)) for name in ("a", "a.txt", "png", "a.png.part", ".hidden.png"))


def test_a_suffix_in_any_case_names_the_output_format():
    for name, entry in OUTPUT_FORMATS.items():
        assert all(output_format(Path(f"a{suffix.upper()}")).name == name for suffix in entry.suffixes)
    assert output_format(Path("folder")) is None
    assert output_format(Path("folder.v2")) is None


def test_the_error_for_gif_names_what_holds_animations():
    with pytest.raises(InputError, match=r"use one of png, .*; with --all-frames webp, png"):
        output_format(Path("a.gif"))


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.HEIC"])
def test_image_formats_that_are_not_written_are_refused(name):
    with pytest.raises(InputError, match=r"cannot write .*; use one of png, tiff, webp, jpeg"):
        output_format(Path(name))
