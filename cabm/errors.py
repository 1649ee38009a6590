"""Errors that a user can act on."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong: a file, a parameter, an option.

    The message is one line: what was found, where, and what to do about it. The command line
    and the stages print it without a traceback and exit non-zero.
    """
