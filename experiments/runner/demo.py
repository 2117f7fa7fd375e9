"""The whole loop once: serve live, calibrate, simulate the same workload, compare, draw.

Everything lands in one folder; what is finished is kept, so an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from calibrate.averaging import averaged
from calibrate.parts import check_parts, remove_parts
from calibrate.profile import PROFILE_FILES, SCHEMA_VERSION, Profile
from engines.errors import InputError
from engines.pairs.origin import origins_of
from engines.record.metrics import summary
from engines.record.run import Run
from engines.storage.files import holds
from engines.storage.locks import locked
from experiments.compare.compare import Comparison, compare
from experiments.compare.report import write_report
from experiments.compare.solo_times import with_solo_times
from experiments.figures.perfetto import export
from experiments.program.outputs import MOVE, UNFINISHED, check_file, check_ours, check_output
from experiments.program.progress import Bar, Report, bar, console
from experiments.runner.cells import cell_folder, cell_of, fingerprint, keep, kept
from experiments.runner.config import Experiment, Point
from experiments.runner.predict import AcceptanceChoice, Prediction, predict, replayed

if TYPE_CHECKING:
    from engines.live.model.pairs import Pair


DRAWN = ("figures", "traces")
WRITTEN = ("comparison.csv", "comparison_paired.csv", "comparison.txt")


class LiveBackend(Protocol):
    """Where live cells are served and the device is measured."""

    def serve(self, point: Point, progress: Report) -> Run: ...

    def measure(self, points: dict[str, list[int]], budget_s: float, unfinished: Path, progress: Bar) -> Profile: ...


@dataclass
class Results:
    """Everything that a demo made. simulations: of the closed loops, then of the replays."""

    lives: list[Run]
    profile: Profile
    simulations: list[Run]
    comparison: Comparison
    figures: list[Path]
    traces: list[Path]


class Demo:
    """Runs an experiment's grid live and simulated.

    folder: gets runs/, profile/, simulated/, figures/, traces/, comparison.csv and comparison.txt.
    """

    def __init__(self, experiment: Experiment, folder: Path, backend: LiveBackend) -> None:
        self.experiment, self.folder, self.backend = experiment, folder, backend
        self.points = list(experiment.points())
        self.models: dict[str, Any] = {}  # of folders that cannot be read: who loads them says what is wrong
        with suppress(InputError):
            self.models = origins_of(experiment.pair).key()

    def run(self) -> Results:
        """All steps in order. Each round of live cells is followed by a part of the calibration, since machines
        drift: what is compared was then measured in the same times. Raises InputError, before any work, if another
        process writes to the folder or if it has something in it that would be replaced and is not a demo's."""
        with locked(self.folder):
            self._check_folder()
            return self._run()

    def _run(self) -> Results:
        rounds = self._rounds()
        total = sum(map(len, rounds))
        lives: list[Run] = []
        parts: list[Profile] = []
        for cells in rounds:
            with bar("live runs") as progress:
                lives += [self._live(*cell, progress, len(lives) + i, total) for i, cell in enumerate(cells)]
            parts.append(self._calibration(len(parts) + 1))
        profile = averaged(parts)
        profile.save(self.folder / "profile")
        with bar("simulations") as progress:
            simulations = self._simulations(lives, profile, progress)
        return self._results(lives, profile, simulations)

    def _check_folder(self) -> None:
        """Nothing is replaced but what a demo has made."""
        for point in self.points:
            for repeat in range(1, self.experiment.repeats + 1):
                name = f"{point.name}-r{repeat}"
                cell_folder(self.folder / "runs", name)
                cell_folder(self.folder / "simulated", f"{name}-replay")
            cell_folder(self.folder / "simulated", point.name)
        profile = self.folder / "profile"
        for part in (profile, *(profile / f"part-{i + 1}" for i in range(self.experiment.repeats))):
            check_output("out", part, PROFILE_FILES)
            check_ours("out", part, PROFILE_FILES, mark="fingerprint")
            check_parts(part / UNFINISHED)
        for name in DRAWN:
            check_output("out", self.folder / name)
        for name in WRITTEN:
            check_file("out", self.folder / name)
        present = [name for name in (*DRAWN, *WRITTEN) if (self.folder / name).exists()]
        if present and not holds(profile, "profile.toml"):  # it is written before these
            remedy = f"{present[0]} is there and was not written by this command; {MOVE}"
            raise InputError("out", str(self.folder), remedy)

    def _rounds(self) -> list[list[tuple[Point, int]]]:
        """The live cells, repeat by repeat, every other round backwards, so that slow drift hits all alike."""
        return [
            [(point, repeat) for point in (self.points if repeat % 2 else reversed(self.points))]
            for repeat in range(1, self.experiment.repeats + 1)
        ]

    def _live(self, point: Point, repeat: int, progress: Report, done: int, total: int) -> Run:
        folder = self.folder / "runs" / f"{point.name}-r{repeat}"
        settings: dict[str, Any] = {"pair": self.experiment.pair, "device": self.experiment.device, "repeat": repeat}
        settings |= {"models": self.models, "max_context": self.experiment.max_context}
        digest = fingerprint({**point.describe(), **settings})
        progress(done, total)
        run = kept(folder, digest)
        if run is None:
            run = keep(self.backend.serve(point, lambda done, total: None), folder, digest)
            tokens = summary(run)["throughput_tokens_per_s"]
            console.print(f"{cell_of(run)}, repeat {repeat}: {tokens:.1f} tokens/s", highlight=False)
        progress(done + 1, total)
        return run

    def _calibration(self, part: int) -> Profile:
        """One of `repeats` parts, at every draft length that an architecture of the grid can use."""
        folder = self.folder / "profile" / f"part-{part}"
        points = _calibration_points(self.experiment)
        budget_s = self.experiment.calibration.budget_s / self.experiment.repeats
        where = {"pair": self.experiment.pair, "models": self.models, "device": self.experiment.device}
        digest = fingerprint({**points, **where, "budget_s": budget_s, "schema_version": SCHEMA_VERSION})
        with suppress(InputError):  # not there, damaged or of another version: it is measured again
            profile = Profile.load(folder)
            if profile.info.get("fingerprint") == digest:
                return profile
        with bar(f"calibrating, part {part} of {self.experiment.repeats}") as progress:
            profile = self.backend.measure(points, budget_s, folder / UNFINISHED, progress)
        profile.info["fingerprint"] = digest
        profile.save(folder)
        remove_parts(folder / UNFINISHED)
        return profile

    def _simulations(self, lives: list[Run], profile: Profile, progress: Report) -> list[Run]:
        """Each cell as the closed loop (or open load) that it was, then each live run's arrivals replayed. Both
        take the acceptance from the live tapes, so that only time is predicted."""
        settings = Prediction(profile, AcceptanceChoice("tape"), seed=self.experiment.seed)
        first = {cell_of(run): run for run in reversed(lives)}
        runs: list[Run] = []

        def add(run: Run, name: str, point: Point) -> None:
            digest = fingerprint({**settings.describe(), **point.describe()})
            runs.append(keep(run, self.folder / "simulated" / name, digest))
            progress(len(runs), len(self.points) + len(lives))

        for point, live in _matched(self.points, list(first.values())):
            add(predict(point.architecture, point.workload, settings, live=live), point.name, point)
        for point, live in _matched(self.points, lives):
            add(predict(point.architecture, replayed(live), settings, live=live), f"{live.name}-replay", point)
        return runs

    def _results(self, lives: list[Run], profile: Profile, simulations: list[Run]) -> Results:
        from experiments.figures import busiest, draw_all

        costs = Prediction(profile, extrapolate=True).costs()
        lives = [with_solo_times(run, costs) for run in lives]
        comparison = compare(lives, simulations)
        comparison.save(self.folder / "comparison.csv")
        write_report(comparison, self.folder / "comparison.txt")
        with console.status("drawing"):
            figures = draw_all(lives, simulations, profile, self.folder / "figures")
        traces = [
            export(run, self.folder / "traces" / f"{cell_of(run).architecture}-{run.info['kind']}.json")
            for pair in busiest(lives, simulations)
            for run in pair
        ]
        return Results(lives, profile, simulations, comparison, figures, traces)


class PairBackend:
    """The pair of the experiment on its device, loaded and warmed up when first needed."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._pair: Pair | None = None

    def serve(self, point: Point, progress: Report) -> Run:
        from experiments.runner.live import serve

        run = serve(point.architecture, point.workload, self._opened(), max_context=self.experiment.max_context)
        unfinished = len(run.requests) - len(run.finished)
        if unfinished:
            error = next(iter(run.requests.loc[run.requests["error"] != "", "error"]), "no error recorded")
            raise InputError(f"{point.name}", f"{unfinished} requests did not finish", error)
        return run

    def measure(self, points: dict[str, list[int]], budget_s: float, unfinished: Path, progress: Bar) -> Profile:
        from experiments.runner.live import measure

        return measure(self._opened(), points, budget_s, "pdv demo", unfinished, progress)

    def _opened(self) -> Pair:
        from engines.live.model.pairs import load_pair
        from experiments.runner.live import warm_up
        from experiments.runner.preflight import check_calibration_fits, check_fits

        if self._pair is None:
            pair, device, context = self.experiment.pair, self.experiment.device, self.experiment.max_context
            for architecture in self.experiment.layouts():
                check_fits(architecture, pair, device=device, max_context=context)
            check_calibration_fits(_calibration_points(self.experiment), pair, device=device)
            with console.status("loading the pair and warming up"):
                self._pair = load_pair(pair, device=device)
                for architecture in self.experiment.layouts():
                    warm_up(architecture, self._pair, context)
        return self._pair


def _calibration_points(experiment: Experiment) -> dict[str, list[int]]:
    """What is measured for the profile, at every draft length that an architecture of the grid can use."""
    rules = [architecture.draft_length for architecture in experiment.layouts()]
    lengths = {k for rule in rules for k in range(getattr(rule, "minimum", rule.maximum), rule.maximum + 1)}
    return experiment.calibration.points(sorted(lengths))


def _matched(points: list[Point], lives: list[Run]) -> Iterator[tuple[Point, Run]]:
    """Each live run with the point that it is a repeat of."""
    by_name = {point.name: point for point in points}
    for live in lives:
        yield by_name[live.name.rpartition("-r")[0]], live
