"""End commands and their worker processes: on a signal, and together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # exit code, as a shell reports it
GRACE_S = 1.5  # time to close everything after SIGTERM
LOOK_S = 0.5  # how often a worker checks for its parent


class TerminatedError(BaseException):
    """SIGTERM was received. Like KeyboardInterrupt, it is not caught by `except Exception`."""


class WorkerLostError(RuntimeError):
    """A worker process was killed before it finished its work."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise TerminatedError in the block on SIGTERM, so that it exits as on Ctrl-C.

    If closing takes longer than GRACE_S, the process exits anyway, since files are replaced atomically.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    hurry = threading.Timer(GRACE_S, _leave)
    hurry.daemon = True

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # raise only once
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
    """Silence the resource trackers, which warn on standard error when they clean up after killed workers."""
    rules = [rule for rule in os.environ.get("PYTHONWARNINGS", "").split(",") if rule]
    os.environ["PYTHONWARNINGS"] = ",".join(dict.fromkeys([*rules, "ignore:resource_tracker"]))


def end_with(parent: int) -> None:
    """Make a worker process end soon after its parent and ignore Ctrl-C.

    Nothing else tells a worker that its parent was killed. A terminal sends Ctrl-C to all processes, but only the
    parent should handle it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)
