"""The one exception that means "the user can mend this", and how any other error is told in one line.

A traceback is for bugs. Everything else that stops a command (a missing file, a value out of range, a full disk)
is raised as :class:`UserError` with one sentence that holds the value, what was expected and what to do; the
commands print that sentence and leave with status 2.
"""

from __future__ import annotations


class UserError(Exception):
    """A condition that the user can mend, told in one sentence: the value, what was expected, what to do."""


def first_line(error: BaseException) -> str:
    """The first line of its message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
