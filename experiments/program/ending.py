"""How every program of the project ends: with an exit code and, on failure, a one-line message."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import typer

from engines.errors import InputError
from experiments.program.processes import TERMINATED, TerminatedError, WorkerLostError, terminable

FAILED, BAD_INPUT = 1, 2
BUG = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130


def ended_by(work: Callable[[], object], name: str = "") -> int:
    """Run `work` and return the exit code.

    On failure, print one line on standard error, starting with `name` if given. Exit codes: 0, or the integer that
    `work` returns. 1: a system error (disk full, out of memory, unwritable file) or a killed worker process; if
    standard output is closed, nothing is printed. 2: bad input. 70: a bug; the line names a file with the traceback.
    130: Ctrl-C. 143: SIGTERM.
    """
    try:
        _print_anything()
        with terminable():
            code = work()
        sys.stdout.flush()  # fail on a full disk now, while it can still be reported
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
            if (refused := _refused_value(error)) is not None:
                return _fail(name, str(refused), BAD_INPUT)
            context = getattr(error, "ctx", None)
            return _fail(
                name, f"{usage().rstrip('.')} (see {getattr(context, 'command_path', name)} --help)", BAD_INPUT
            )
        if type(error).__name__ == "OutOfMemoryError":  # torch's; not worth importing torch for
            return _fail(name, str(error), FAILED)
        said = f"{type(error).__name__}: {error}"
        return _fail(name, f"this is a bug, please report it: {said[:300]} ({_kept_traceback()})", BUG)
    if code == INTERRUPTED:
        return _fail(name, "interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _refused_value(error: Any) -> InputError | None:
    """Return typer's error about the value of an option as one of ours; None for other errors."""
    from pydantic import ValidationError  # only needed on failure

    from engines.storage.validation import remedy_of

    if not isinstance(error.__context__, ValidationError):
        return None
    (found,) = error.__context__.errors()
    remedy = remedy_of([found])
    _, _, choices = remedy.rstrip(".").partition(" is not one of ")
    return InputError(error.param.name, found["input"], f"use {choices}".replace("'", "") if choices else remedy)


def _fail(name: str, message: str, code: int) -> int:
    with suppress(OSError):  # standard error is closed
        print(" ".join([f"{name}:"] * (name != "") + message.split()), file=sys.stderr)
    return code


def _print_anything() -> None:
    """Escape what the output encoding cannot show, since file names can hold any bytes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a replaced stream may not support this
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _print_nothing_more() -> None:
    """Discard the buffer of an unwritable standard output, since flushing it at exit would fail again."""
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
