"""Run one experiment: live cells, the calibration between them, simulations and the comparison.

Every run has its own record, so interrupted work resumes where it stopped, and a failed cell does not affect others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import RenderableType

from calibrate.averaging import averaged
from calibrate.parts import remove_parts
from calibrate.profile import SCHEMA_VERSION, Profile
from engines.errors import InputError
from engines.pairs.origin import origins_of, pair_name
from engines.pairs.permutation import PREFIX, parse_pair
from engines.policy.architecture import Architecture
from engines.record.metrics import summary
from engines.record.run import Run
from engines.storage.files import replaced
from engines.storage.locks import locked
from experiments.compare.comparable import BLIND, SIMULATED, mode_of
from experiments.compare.compare import Comparison, compare
from experiments.compare.decisions import decisions
from experiments.compare.fidelity import fidelity, fidelity_path
from experiments.compare.fidelity_report import decisions_report, fidelity_report
from experiments.compare.report import write_report
from experiments.figures.perfetto import export
from experiments.program.outputs import UNFINISHED
from experiments.program.progress import bar, console
from experiments.program.provenance import note_call
from experiments.runner.cells import cell_of, described, fingerprint, keep, kept
from experiments.runner.config import Experiment, Point
from experiments.runner.folder import CELLS, SETTINGS, check_folder, check_profile_folder, place_of
from experiments.runner.grouping import by_engine, by_layout, widest, workloads_of
from experiments.runner.layouts import Layout
from experiments.runner.live import LiveBackend, Serve, check_finished
from experiments.runner.predict import (
    FROM_PROFILE,
    AcceptanceChoice,
    Prediction,
    check,
    masks_of,
    parse_acceptance,
    planned,
    replayed,
    without_live,
)
from experiments.runner.results import CellTable, Key
from experiments.runner.simulations import Task, simulated
from experiments.runner.without import check_parts_of_model
from sim.step_times import check_measured


@dataclass
class Outcome:
    """The results of an experiment.

    runs: live runs, then simulated ones, without replays. left: number of live cells that there was no time for.
    """

    cells: CellTable
    runs: list[Run] = field(default_factory=list)
    comparison: Comparison | None = None
    figures: list[Path] = field(default_factory=list)
    traces: list[Path] = field(default_factory=list)
    left: int = 0


class Runner:
    """Runs an experiment in a folder.

    backend: serves live cells. only: "live" or "simulated", to do only this part of the work. jobs: number of
    simulation processes, one per core by default. budget_s: seconds after the start when the last live cell or
    calibration may begin. without: parts of the model that are switched off. command: that this was called by, for
    provenance.toml. Raises InputError.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, backend: LiveBackend, *,
        only: str | None = None, jobs: int | None = None, budget_s: float | None = None,
        without: Sequence[str] = (), command: str = "",
    ) -> None:  # fmt: skip
        if only is not None and experiment.mode not in ("both", only):
            raise InputError("only", only, f'the mode of the experiment is "{experiment.mode}"; leave it out')
        mode = only or experiment.mode
        self.serves, self.simulates = mode != "simulated", mode != "live"
        self.experiment, self.folder, self.backend = experiment, folder, backend
        self.jobs, self.budget_s, self.without = jobs, budget_s, check_parts_of_model(without)
        self.command = command
        self.points = experiment.points()
        self.rounds = range(1, max(len(point.workloads) for point in self.points) + 1)
        self.parts = range(1, experiment.repeats + 1)  # of the calibration
        self.table = CellTable(folder / CELLS, [point.name for point in self.points])
        self.lives: dict[tuple[str, int], Run] = {}
        place = experiment.profile or (None if self.serves else folder / "profile")  # else it is measured
        self.given = Profile.load(Path(place)) if place is not None else None
        self._weighed = self.given  # profile that draft lengths weigh, once there is one
        self.acceptance = parse_acceptance(experiment.acceptance) if experiment.acceptance is not None else None
        self.pair = experiment.pair or "embedded"
        self.models: dict[str, Any] = {}  # stays empty for unreadable folders: loading them reports the error
        with suppress(InputError):
            self.models = origins_of(self.pair).key()

    def run(self) -> Outcome:
        """Do everything that is not done yet.

        Raises InputError before any work for input that cannot be run, if another process writes to the folder, or if
        something in it would be replaced that no experiment wrote.
        """
        with locked(self.folder):
            check_folder(self.folder, [(point.name, n) for point in self.points for n in point.repeats])
            for part in (self.folder / "profile", *map(self._part, self.parts)):
                check_profile_folder(part)
            self._check_profile()
            self._find_lives()
            if self.serves:
                self._check_backend()
            with replaced(self.folder / SETTINGS) as beside:
                beside.write_text(tomli_w.dumps(self.experiment.resolved()), encoding="utf-8")
            note_call(self.folder, self.command)
            for key, run in self.lives.items():
                self.table.add((*key, "live"), run)
            self.table.save()
            outcome, profile = Outcome(self.table), self.given
            if self.serves:
                outcome.left, measured = self._rounds()
                profile = profile or measured
            outcome.runs += self.lives.values()
            if profile is not None and self.simulates:
                simulations = self._simulations(profile)
                outcome.runs += [run for run in simulations if mode_of(run) == SIMULATED]
                if {cell_of(run) for run in simulations} & {cell_of(run) for run in self.lives.values()}:
                    self._conclude(outcome, profile, simulations)
            return outcome

    # --- before any work ------------------------------------------------------------------------------

    def _check_profile(self) -> None:
        """Raise InputError if the given profile is of another pair or cannot predict the simulations, or if a file of
        masks does not cover them."""
        if self.simulates and self.acceptance is not None and self.acceptance.masks:
            for workload in workloads_of(self.points):
                masks_of(self.acceptance).check(workload.requests, self.experiment.max_context)
        if self.given is None:
            return
        asked = self.experiment.pair if self.experiment.mode == "simulated" else self.pair
        if asked is not None:
            called = parse_pair(asked).name if asked.startswith(PREFIX) else pair_name(asked)
            if called != self.given.info["pair"]:
                remedy = f"the profile is of {self.given.info['pair']!r}; give a profile of this pair"
                raise InputError("pair", asked, remedy)
        if self.serves:
            for layout in self.experiment.layouts():
                check_measured(self.given, layout.architecture.draft_length)
        else:
            settings = self._prediction(self.given)
            for point in self.points:
                for workload in point.workloads:
                    check(point.layout.architecture, workload, settings)

    def _check_backend(self) -> None:
        layouts = [(self._resolved(points[0]), workloads_of(points)) for points in by_layout(self.points)]
        points = self.experiment.calibration_points() if self._calibrates else None
        device = self.backend.check(layouts, points)
        if self.given is not None and self.given.info["device"] != device:
            remedy = f"the live cells would run on {device!r}; give a profile of that device"
            raise InputError("profile device", self.given.info["device"], remedy)

    @property
    def _calibrates(self) -> bool:
        return self.given is None and self.experiment.calibration is not None

    # --- live -----------------------------------------------------------------------------------------

    def _find_lives(self) -> None:
        for point in self.points:
            for repeat in point.repeats:
                run = kept(self._record((point.name, repeat, "live")), self._live_digest(point, repeat))
                if run is not None:
                    self.lives[point.name, repeat] = run

    def _resolved(self, point: Point) -> Layout:
        """Return the point's layout with the slots of its finished runs, so that all its runs are repeats."""
        for (name, _), run in self.lives.items():
            other = next(other for other in self.points if other.name == name)
            if other.layout is point.layout:
                return Layout(Architecture.from_dict(run.info["architecture"]), True)
        return point.layout

    def _rounds(self) -> tuple[int, Profile | None]:
        """Serve one round of live cells per repeat, each followed by a part of the calibration.

        Machines drift, so what is compared is measured over the same period; every other round runs in reverse order.
        A draft length that follows the load weighs the first part, which is then measured before all cells.
        Returns the number of cells that there was no time for, and the profile if it is complete.
        """
        parts: list[Profile] = []
        end_s = time.monotonic() + self.budget_s if self.budget_s is not None else float("inf")
        left, context_named = 0, self.experiment.max_context is not None
        for repeat in self.rounds:
            if self._calibrates and self.experiment.weighs and repeat in self.parts:
                self._weighed = self._weighed or self._calibration(repeat, end_s)
            groups = by_engine([point for point in self.points if repeat in point.repeats], context_named)
            for points in groups if repeat % 2 else [group[::-1] for group in reversed(groups)]:
                left += self._serve(points, repeat, end_s)
            if self._calibrates and repeat in self.parts and (found := self._calibration(repeat, end_s)) is not None:
                parts.append(found)
        if len(parts) < len(self.parts):
            return left, None
        averaged(parts).save(self.folder / "profile")
        return left, Profile.load(self.folder / "profile")

    def _serve(self, points: list[Point], repeat: int, end_s: float) -> int:
        """Serve one repeat of cells with one engine, or a new one if it fails.

        Returns the number of cells left.
        """
        missing = deque(point for point in points if (point.name, repeat) not in self.lives)
        while missing and time.monotonic() < end_s:
            point = missing.popleft()
            try:
                with self.backend.engine(widest(points).layout, workloads_of(points), self._weighed) as serve:
                    self._live(point, repeat, serve)
                    while missing and time.monotonic() < end_s:
                        point = missing.popleft()
                        self._live(point, repeat, serve)
            except (InputError, RuntimeError) as error:
                cause = f": {error.__cause__}" if error.__cause__ is not None else ""
                self.table.add((point.name, repeat, "live"), f"{error}{cause}")
                self.table.save()
        return len(missing)

    def _live(self, point: Point, repeat: int, serve: Serve) -> None:
        key = point.name, repeat, "live"
        with bar(f"{point.name}, repeat {repeat}") as progress:
            run = serve(point.workloads[repeat - 1], point.draft_length, progress)
        run.info["architecture"]["name"] = point.layout.architecture.name
        try:
            check_finished(run)
        except InputError as error:
            self.table.add(key, str(error))
            self.table.save()
            return
        run = keep(run, self._record(key), self._live_digest(point, repeat))
        self.lives[point.name, repeat] = run
        self.table.add(key, run)
        self.table.save()
        tokens = summary(run)["throughput_tokens_per_s"]
        console.print(f"{cell_of(run)}, repeat {repeat}: {tokens:.1f} tokens/s")

    def _record(self, key: Key) -> Path:
        return self.folder.joinpath(*place_of(key))

    def _live_digest(self, point: Point, repeat: int) -> str:
        settings: dict[str, Any] = {
            "pair": self.pair,
            "device": self.experiment.device or "cpu",
            "models": self.models,
        }
        settings |= {"slots_named": point.layout.slots_named, "max_context": self.experiment.max_context}
        return fingerprint(
            {**described(point.layout.architecture, point.workloads[repeat - 1]), **settings, "repeat": repeat}
        )

    def _part(self, repeat: int) -> Path:
        return self.folder / "profile" / f"part-{repeat}"

    def _calibration(self, part: int, end_s: float) -> Profile | None:
        """Return one of `repeats` parts of the profile, or None if there is no time left for it."""
        folder, points = self._part(part), self.experiment.calibration_points()
        assert self.experiment.calibration is not None
        budget_s = self.experiment.calibration.budget_s / self.experiment.repeats
        where = {"pair": self.pair, "models": self.models, "device": self.experiment.device or "cpu"}
        digest = fingerprint({**points, **where, "budget_s": budget_s, "schema_version": SCHEMA_VERSION})
        with suppress(InputError):  # missing, damaged or of another version: measure it again
            profile = Profile.load(folder)
            if profile.info.get("fingerprint") == digest:
                return profile
        if time.monotonic() >= end_s:
            return None
        with bar(f"calibrating, part {part} of {self.experiment.repeats}") as progress:
            profile = self.backend.measure(points, budget_s, folder / UNFINISHED, progress)
        profile.info["fingerprint"] = digest
        profile.save(folder)
        remove_parts(folder / UNFINISHED)
        return Profile.load(folder)  # as it is read later: saved tables are rounded

    # --- simulated ------------------------------------------------------------------------------------

    def _prediction(self, profile: Profile) -> Prediction:
        chosen = self.acceptance or without_live(profile)
        return Prediction(profile, chosen, without=self.without, max_context=self.experiment.max_context)

    def _simulations(self, profile: Profile) -> list[Run]:
        """Simulate every repeat of every cell with its own load, and each live run once more as a replay and blind.

        Cells with live runs use their acceptance, so that only times are predicted; blind, the profile's.
        """
        from_tapes = self._prediction(profile)
        if self.acceptance is None:
            from_tapes.acceptance = AcceptanceChoice("tape")
        with_live, without, blind = [], [], []
        for point in self.points:
            for repeat in point.repeats:
                live, seed = self.lives.get((point.name, repeat)), self.experiment.seed + repeat - 1
                workload = point.workloads[repeat - 1]
                if live is None:
                    if not self.serves:
                        task = Task(point.layout.architecture, workload, seed)
                        without.append(((point.name, repeat, "simulated"), task))
                    continue
                architecture = Architecture.from_dict(live.info["architecture"])
                with_live.append(((point.name, repeat, "simulated"), Task(architecture, workload, seed, live)))
                if self.experiment.replay:
                    task = Task(architecture, replayed(live), seed, live)
                    with_live.append(((point.name, repeat, "replay"), task))
                if self.experiment.blind:
                    blind.append(((point.name, repeat, BLIND), Task(architecture, planned(live), seed)))
        fitted = self._prediction(profile)
        if self.acceptance is None or self.acceptance.kind == "tape":
            fitted.acceptance = FROM_PROFILE
        return [
            *self._simulated(with_live, from_tapes),
            *self._simulated(without, self._prediction(profile)),
            *self._simulated(blind, fitted),
        ]

    def _simulated(self, wanted: Sequence[tuple[Key, Task]], settings: Prediction) -> list[Run]:
        settings_ = settings.describe()
        places, runs, missing = [], [], []
        for key, task in wanted:
            folder = self._record(key)
            digest = fingerprint({**settings_, **task.described()})
            run = kept(folder, digest)
            if run is None:
                places.append((key, folder, digest))
                missing.append(task)
            else:
                runs.append(run)
                self.table.add(key, run)
        try:
            with bar("simulations") as progress:
                for done, (index, made) in enumerate(simulated(missing, settings, self.jobs) if missing else (), 1):
                    key, folder, digest = places[index]
                    if isinstance(made, Run):
                        runs.append(keep(made, folder, digest))
                    self.table.add(key, made)
                    progress(done, len(missing))
        finally:
            self.table.save()
        return sorted(runs, key=lambda run: run.name)

    # --- together -------------------------------------------------------------------------------------

    def _conclude(self, outcome: Outcome, profile: Profile, simulations: list[Run]) -> None:
        from experiments.figures.draw import busiest, draw_all

        lives = list(self.lives.values())
        outcome.comparison = compare(lives, simulations, profile)
        outcome.comparison.save(self.folder / "comparison.csv")
        more: tuple[RenderableType, ...] = ()
        if {mode_of(run) for run in simulations} != {SIMULATED}:
            found = fidelity(lives, simulations)
            found.save(fidelity_path(self.folder / "comparison.csv"))
            more = fidelity_report(found), decisions_report(decisions(lives, simulations))
        write_report(outcome.comparison, self.folder / "comparison.txt", *more)
        with console.status("drawing"):
            outcome.figures = draw_all(lives, simulations, profile, self.folder / "figures")
        outcome.traces = [
            export(run, self.folder / "traces" / f"{cell_of(run).architecture}-{run.info['kind']}.json")
            for pair in busiest(lives, simulations)
            for run in pair
        ]
