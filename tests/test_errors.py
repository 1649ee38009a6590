"""Messages are one short line, whatever a file says."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from cabm.errors import InputError, TrainingDiverged, describe, error_line


class Schedule(BaseModel):
    halve_at: tuple[int, int] = (0, 0)
    steps: int = 0


def message(content: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Schedule.model_validate(content)
    return describe(caught.value, content)


def test_a_tuple_that_is_too_short_is_named() -> None:
    assert message({"halve_at": [1]}).startswith("halve_at.1: Field required")


def test_places_and_values_are_named() -> None:
    assert message({"steps": "many"}) == (
        "steps: Input should be a valid integer, unable to parse string as an integer (found 'many')"
    )
    assert message({"halve_at": [1, "x"]}).startswith("halve_at.1: ")


def test_a_number_of_any_length_is_described() -> None:
    assert "a number of 39864 bits" in message({"halve_at": 10**12_000})
    assert "a number of 39864 bits" in message({"halve_at": {"a": 10**12_000}})


def test_a_few_lines_that_stand_for_billions_take_no_time() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    content = {"steps": yaml.safe_load("\n".join(lines))["a11"]}
    started = time.monotonic()
    text = message(content)
    assert time.monotonic() - started < 30
    assert len(text) < 300


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x00", "\u2028", "\u202e", "\ud800"])
def test_nothing_in_a_message_breaks_the_line_or_steers_the_terminal(character: str) -> None:
    text = str(InputError(f"a{character}b"))
    assert text.isprintable()
    assert text[0] == "a" and text[-1] == "b"
    assert str(InputError("photos/Ünïcode näme 写真.png")) == "photos/Ünïcode näme 写真.png"


def test_the_middle_of_a_long_message_is_left_out() -> None:
    text = str(InputError(f"weights: cannot be read ({'x' * 5000}); copy it again"))
    assert text.startswith("weights: cannot be read (xxx") and text.endswith("xxx); copy it again")
    assert " ... " in text and len(text) < 1600
    whole = "y" * 1500
    assert str(InputError(whole)) == whole


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.png: not an image"), "a.png: not an image"),
        (TrainingDiverged("step 3: loss l1 is not finite"), "step 3: loss l1 is not finite"),
        (FileNotFoundError(2, "No such file", "b.png"), "b.png: No such file"),
        (OSError("the connection\nbroke"), "a.png: the connection broke"),
        (MemoryError(), "a.png: not enough memory"),
        (MemoryError("1 GiB"), "a.png: not enough memory (1 GiB)"),
        (ZeroDivisionError("by zero"), "a.png: ZeroDivisionError: by zero"),
    ],
)
def test_every_error_is_one_line(error: Exception, line: str) -> None:
    assert error_line(error, "a.png") == line
    assert error_line(error) == line.removeprefix("a.png: ") or isinstance(error, InputError)
