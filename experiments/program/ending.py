"""How every program of the project ends: with an exit code and, where something went wrong, one line about it."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress

import typer

from engines.errors import InputError
from experiments.program.processes import TERMINATED, TerminatedError, WorkerLostError, terminable

FAILED, BAD_INPUT = 1, 2
BUG = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130


def ended_by(work: Callable[[], object], name: str = "") -> int:
    """Do the work; the exit code, after one line on standard error (begun with the program's name, if it is given)
    where it did not go well.

    0, or what the work returns as a whole number. 1: the system refused (disk full, no memory, a file that cannot be
    written) or a worker process was killed; no line where nobody reads standard output any more. 2: bad input. 70: a
    bug; its traceback is kept in a file that the line names. 130: Ctrl-C. 143: SIGTERM.
    """
    try:
        _print_anything()
        with terminable():
            code = work()
        sys.stdout.flush()  # a full disk shows here, and not when nobody can say so any more
    except InputError as error:
        return _fail(name, str(error), BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except TerminatedError:
        return _fail(name, "terminated", TERMINATED)
    except WorkerLostError as error:
        return _fail(name, str(error), FAILED)
    except BrokenPipeError:
        _print_nothing_more()
        return FAILED
    except OSError as error:
        _print_nothing_more()
        place = f"{error.filename}: " if error.filename is not None else ""
        return _fail(name, f"{place}{error.strerror or error}", FAILED)
    except MemoryError:
        return _fail(name, "out of memory; use fewer requests, tokens or points", FAILED)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # of typer's errors, such as an unknown option
        if usage is not None:
            return _fail(name, f"{usage()} (see {name} --help)", BAD_INPUT)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
            return _fail(name, str(error), FAILED)
        said = f"{type(error).__name__}: {error}"
        return _fail(name, f"a bug of this program, please report it: {said[:300]} ({_kept_traceback()})", BUG)
    if code == INTERRUPTED:
        return _fail(name, "interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(name: str, message: str, code: int) -> int:
    with suppress(OSError):  # nobody is there to be told
        print(" ".join([f"{name}:"] * (name != "") + message.split()), file=sys.stderr)
    return code


def _print_anything() -> None:
    """File names need not be text; what standard output cannot show is written as its code."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # of a stream that stands in for it
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _print_nothing_more() -> None:
    """What is left in the buffer of a standard output that cannot be written would fail once more at exit."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _kept_traceback() -> str:
    text = traceback.format_exc()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="pdv-", suffix=".txt", delete=False, errors="replace") as file:
            file.write(text)
    except OSError:
        return " ".join(text.split()[-40:])
    return f"traceback: {file.name}"
