"""Progress bars for whatever takes longer than a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, int], None]
"""What a long task calls with (done, of how many)."""

AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
"""Settings of a console that shows names as they are, whatever brackets and colons they have."""

console = Console(**AS_IT_IS, stderr=True)
"""Progress and remarks; results go to standard output."""


class Bar:
    """One progress bar. Call it with (done, of how many)."""

    def __init__(self, progress: Progress, task: TaskID, title: str) -> None:
        self._progress, self._task, self._title = progress, task, title

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def part(self, what: str, fraction: float) -> None:
        """What is being done, and how much of the whole is done (0 to 1)."""
        self._progress.update(self._task, description=f"{self._title}: {what}", completed=fraction, total=1)


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """A progress bar on standard error while the block runs; nothing of it stays, and none is drawn in a file."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(title, total=None), title)
