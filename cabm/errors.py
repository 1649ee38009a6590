"""Errors that a user can act on."""

from __future__ import annotations

from pydantic import ValidationError


class InputError(ValueError):
    """Something the user gave is wrong: a file, a parameter, an option.

    The message is one line: what was found, where, and what to do about it. The command line
    and the stages print it without a traceback and exit non-zero.
    """


class TrainingDiverged(RuntimeError):
    """A loss, weight or clip value became unusable; the message names it and the step."""


def describe(error: ValidationError) -> str:
    """Return a validation error as one line: where, what is wrong, what was found."""
    problems = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        problems.append(f"{where}: {problem['msg']} (found {str(problem['input'])[:80]!r})")
    return "; ".join(problems[:5])
