"""Progress bars for long tasks."""

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
"""Called by a long task with (done, total)."""

AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
"""Settings of a console that prints names literally, even if they contain brackets or colons."""

console = Console(**AS_IT_IS, stderr=True)
"""For progress and messages; results go to standard output."""


class Bar:
    """A progress bar. Call it with (done, total)."""

    def __init__(self, progress: Progress, task: TaskID, title: str) -> None:
        self._progress, self._task, self._title = progress, task, title

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def part(self, what: str, fraction: float) -> None:
        """Show the current part and the fraction of the whole that is done (0 to 1)."""
        self._progress.update(self._task, description=f"{self._title}: {what}", completed=fraction, total=1)


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """Show a progress bar on standard error during the block, if standard error is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(title, total=None), title)
