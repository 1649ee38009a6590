"""Errors that a user can act on."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError


class InputError(ValueError):
    """Something the user gave is wrong: a file, a parameter, an option.

    The message is one line: what was found, where, and what to do about it. The command line
    and the stages print it without a traceback and exit non-zero.
    """


class TrainingDiverged(RuntimeError):
    """A loss, weight or clip value became unusable; the message names it and the step."""


def describe(error: ValidationError, content: Any = None) -> str:
    """Return a validation error as one line: where, what is wrong, what was found.

    Args:
        error: of a model.
        content: what was validated, to name its keys alone and not the models that were tried.
    """
    problems = []
    for problem in error.errors(include_url=False):
        where = ".".join(_keys(problem["loc"], content)) or "the file"
        problems.append(f"{where}: {problem['msg']} (found {str(problem['input'])[:80]!r})")
    return "; ".join(problems[:5])


def _keys(places: tuple[int | str, ...], content: Any) -> list[str]:
    if content is None:
        return [str(place) for place in places]
    keys = []
    for index, place in enumerate(places):
        sequence = isinstance(content, (list, tuple)) and isinstance(place, int)
        inside = sequence or (isinstance(content, dict) and place in content)
        if inside:
            content = content[place]
        if inside or (index == len(places) - 1 and isinstance(content, (dict, list))):
            keys.append(str(place))  # the last one may be a key that is missing
    return keys
