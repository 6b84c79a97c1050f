"""What every ``python -m fastinfogan.X`` does alike: ``--version``, and errors as sentences."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import select
import sys
import threading
from collections.abc import Callable

import torch

from fastinfogan import __version__
from fastinfogan.errors import UserError


def run_command(main: Callable[[], None]) -> None:
    """Run ``main``, or print the versions where ``--version`` is among the arguments.

    A :class:`UserError` becomes one line on stderr and exit status 2; any other exception keeps its traceback: it is
    a bug of ours.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a log is read while the run goes on, and a path need not be what a terminal can show
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        if "--version" in sys.argv[1:]:
            print(f"fastinfogan {__version__}, torch {torch.__version__}")
        else:
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            for process in multiprocessing.active_children():
                process.terminate()
            os._exit(130)  # an evaluation beside the training would be waited for, and nothing can end it
        raise SystemExit(130) from None
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # Whoever read the output, head or less, has seen enough; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None  # as a shell reports SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the disk"
        print(f"error: cannot write to {where} ({error.strerror}): free some space, then repeat", file=sys.stderr)
        raise SystemExit(2) from None


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are told whatever is asked for
    return any(event & select.POLLERR for _, event in poll.poll(0))
