"""How commands and their worker processes end: on a signal, and with one another."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # exit code, as a shell would report it
GRACE_S = 1.5  # after SIGTERM, for what has to be closed
LOOK_S = 0.5  # how often a worker looks for its parent


class TerminatedError(BaseException):
    """SIGTERM has come. As with KeyboardInterrupt, no `except Exception` holds it up."""


class WorkerLostError(RuntimeError):
    """A worker process ended before its work, from outside."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise TerminatedError in the block when SIGTERM comes, so that it is left as after Ctrl-C. What takes longer
    than GRACE_S to close is left as it is: files are written so that they are whole at any moment."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    hurry = threading.Timer(GRACE_S, _leave)
    hurry.daemon = True

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        hurry.start()
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        hurry.cancel()
        signal.signal(signal.SIGTERM, before)


def _leave() -> None:
    print("pdv: terminated", file=sys.stderr, flush=True)
    os._exit(TERMINATED)


def silence_trackers() -> None:
    """Keep the processes that clear up what killed workers leave from remarking on it on standard error."""
    rules = [rule for rule in os.environ.get("PYTHONWARNINGS", "").split(",") if rule]
    os.environ["PYTHONWARNINGS"] = ",".join(dict.fromkeys([*rules, "ignore:resource_tracker"]))


def end_with(parent: int) -> None:
    """In a worker process: end soon after the parent, of which nothing else tells if it was killed, and leave Ctrl-C,
    which a terminal sends to all, to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)
