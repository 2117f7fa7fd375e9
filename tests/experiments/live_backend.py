"""A grid of cells, and a stand-in for the device that serves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrate.profile import Profile
from engines.policy.draft_length import DraftLength, covers
from engines.record.run import Run
from engines.workload.workload import Workload
from experiments.program.progress import Bar, Report
from experiments.runner.config import Experiment
from experiments.runner.experiment import Outcome, Runner
from experiments.runner.layouts import Layout
from experiments.runner.live import Serve
from tests.experiments import synthetic

GRID: dict[str, Any] = {
    "architectures": ["baseline", "pdv"],
    "concurrencies": [1, 3],
    "repeats": 2,
    "pair": "made-up pair",
    "workload": {"requests": 6, "prompt_tokens": "16-48", "output_tokens": "16-32"},
    "calibration": {"batches": [1, 4], "contexts": [32, 80], "prompt_tokens": [16, 48]},
}


CELLS = ["baseline-c1-k4", "baseline-c3-k4", "pdv-c1-k4", "pdv-c3-k4"]


class Backend:
    """Stands in for a device: 'live' runs are simulations on a made-up device that is 4% slower than its profile
    says. `interrupt_at` interrupts one of its calls, as a user might; `broken` cells raise this error."""

    def __init__(self, interrupt_at: int | None = None, broken: dict[str, Exception] | None = None) -> None:
        self.served: list[str] = []
        self.opened: list[str] = []
        self.measured: list[dict[str, list[int]]] = []
        self.interrupt_at, self.broken = interrupt_at, broken or {}
        self.exactness: dict[str, Any] | None = None
        self.slots: int | None = None

    def check(self, layouts: Sequence[tuple[Layout, Sequence[Workload]]], points: dict[str, list[int]] | None) -> str:
        self.resolved = {layout.architecture.name: layout.architecture for layout, _ in layouts}
        return str(synthetic.INFO["device"])

    @contextmanager
    def engine(self, layout: Layout, workloads: Sequence[Workload], profile: Profile | None) -> Iterator[Serve]:
        architecture = self.resolved[layout.architecture.name]
        self.opened.append(architecture.name)

        def serve(workload: Workload, length: DraftLength, progress: Report) -> Run:
            assert covers(architecture.draft_length, length)
            name = f"{architecture.name}-c{workload.concurrency}"
            if len(self.served) == self.interrupt_at:
                raise KeyboardInterrupt
            if name in self.broken:
                raise self.broken[name]
            self.served.append(name)
            layout = architecture.replace(draft_length=length)
            layout = layout if self.slots is None else layout.replace(slots=self.slots)
            run = synthetic.live(layout, seed=len(self.served), slower=1.04, asked=workload)
            run.info |= {} if self.exactness is None else {"exactness": self.exactness}
            return run

        yield serve

    def measure(self, points: dict[str, list[int]], budget_s: float, unfinished: Path, progress: Bar) -> Profile:
        self.measured.append(points)
        return synthetic.profile()


def perform(folder: Path, backend: Backend | None = None, only: str | None = None, **change: Any) -> Outcome:
    experiment = Experiment.from_dict({**GRID, **change})
    return Runner(experiment, folder, backend or Backend(), only=only, jobs=1).run()
