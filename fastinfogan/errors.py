"""The one exception that means "the user can mend this".

A traceback is for bugs. Everything else that stops a command (a missing file, a value out of range, a full disk)
is raised as :class:`UserError` with one sentence that holds the value, what was expected and what to do; the
commands print that sentence and leave with status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A condition that the user can mend, told in one sentence: the value, what was expected, what to do."""


def run_command(main: Callable[[], None]) -> None:
    """Run ``main``; a :class:`UserError` becomes one line on stderr and exit status 2.

    Any other exception keeps its traceback: it is a bug of ours.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
