"""Live runs and calibrations for experiments. Torch is imported only when it is needed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from calibrate.profile import Profile
from engines.errors import InputError
from engines.pairs.permutation import PREFIX, expected_output, parse_pair
from engines.policy.architecture import Architecture
from engines.policy.captured_sizes import capture_plans, prefill_tokens_of
from engines.policy.draft_length import DraftLength, LoadAdaptiveDraftLength
from engines.policy.load_adaptive import StepTimes
from engines.record.run import Run
from engines.workload.workload import FixedLength, Workload, make_workload
from experiments.program.progress import Bar, Report, console
from experiments.runner.cells import at_once, check_room, fingerprint
from experiments.runner.layouts import Layout
from sim.costs import CostModel
from sim.step_times import step_times

if TYPE_CHECKING:
    from engines.live.model.pairs import Pair
    from engines.live.serving.engine import Handle, LiveEngine

WARM_UP_TOKENS, WARM_UP_CLIENTS = 16, 64
Serve = Callable[[Workload, DraftLength, Report], Run]


class LiveBackend(Protocol):
    """Serves live cells and measures the device."""

    def check(self, layouts: Sequence[tuple[Layout, Sequence[Workload]]], points: dict[str, list[int]] | None) -> str:
        """Check that the device can serve every layout with its workloads and calibrate over these points.

        Returns the name of the device. Raises InputError.
        """

    def engine(
        self, layout: Layout, workloads: Sequence[Workload], profile: Profile | None
    ) -> AbstractContextManager[Serve]:
        """Return an engine that is warmed up and ready for these workloads, with any draft length that the layout's
        covers. profile: see `started`."""

    def measure(self, points: dict[str, list[int]], budget_s: float, unfinished: Path, progress: Bar) -> Profile:
        """Return a profile over these points (see experiments.runner.preflight.grid_of)."""


class PairBackend:
    """A pair on a device, loaded on first use. max_context: see LiveEngine."""

    def __init__(self, pair: str, device: str, max_context: int | None, command: str) -> None:
        self.name, self.device, self.max_context, self.command = pair, device, max_context, command
        self._pair: Pair | None = None
        self._resolved: dict[str, Architecture] = {}

    def check(self, layouts: Sequence[tuple[Layout, Sequence[Workload]]], points: dict[str, list[int]] | None) -> str:
        from engines.live.model.pairs import find_device
        from engines.live.serving.serve import device_name
        from experiments.runner.preflight import check_calibration_fits, check_fits, context_on, fill

        for layout, workloads in layouts:
            architecture = layout.architecture
            context = context_on(architecture, self.name, max_context=self.max_context)
            for workload in workloads:
                check_room(workload, context)
            where: dict[str, Any] = {"device": self.device, "max_context": self.max_context}
            if layout.slots_named:
                check_fits(architecture, self.name, **where)
            else:
                architecture = fill(architecture, max(map(at_once, workloads)), self.name, **where)
            self._resolved[_key(architecture)] = architecture
        if points is not None:
            check_calibration_fits(points, self.name, device=self.device)
        return device_name(find_device(self.device))

    @contextmanager
    def engine(self, layout: Layout, workloads: Sequence[Workload], profile: Profile | None) -> Iterator[Serve]:
        architecture = self._resolved[_key(layout.architecture)]
        free_memory()
        pair = self._loaded()
        with console.status(f"{architecture.name}: starting"):
            engine = started(architecture, pair, workloads, self.max_context, profile)
        with engine:
            with console.status(f"{architecture.name}: warming up"):
                warm_up(engine, workloads)
            yield lambda workload, length, progress: serve(engine, workload, self.name, progress, length)

    def measure(self, points: dict[str, list[int]], budget_s: float, unfinished: Path, progress: Bar) -> Profile:
        free_memory()
        return measure(self._loaded(), points, budget_s, self.command, unfinished, progress)

    def _loaded(self) -> Pair:
        from engines.live.model.pairs import load_pair

        if self._pair is None:
            with console.status("loading the pair"):
                self._pair = load_pair(self.name, device=self.device)
        return self._pair


def _key(architecture: Architecture) -> str:
    """Return a key that does not depend on the number of slots."""
    return fingerprint({**architecture.to_dict(), "slots": None})


def started(
    architecture: Architecture, pair: Pair, workloads: Sequence[Workload], max_context: int | None,
    profile: Profile | None = None,
) -> LiveEngine:  # fmt: skip
    """Return an engine for these workloads, not yet entered.

    It sets no memory aside: the plan made before the pair was loaded (experiments.runner.preflight) has a reserve.
    profile: what a draft length that follows the load weighs. Raises InputError if it is needed and missing.
    """
    from engines.live.serving.engine import LiveEngine

    requests = [request for workload in workloads for request in workload.requests]
    prefill_tokens = prefill_tokens_of(architecture, max(request.prompt_tokens for request in requests))
    return LiveEngine(
        architecture, pair, max_context, sampling=any(request.temperature != 0 for request in requests),
        prefill_tokens=prefill_tokens, reserve=0, times=_times(architecture, profile, prefill_tokens),
    )  # fmt: skip


def _times(architecture: Architecture, profile: Profile | None, prefill_tokens: int) -> StepTimes | None:
    """Return what the architecture's draft length weighs, if anything."""
    if profile is None or not isinstance(architecture.draft_length, LoadAdaptiveDraftLength):
        return None
    costs = CostModel(profile, extrapolate=True)
    return step_times(costs, architecture, capture_plans(architecture, prefill_tokens, costs.captured))


def serve(
    engine: LiveEngine, workload: Workload, pair: str, progress: Report | None = None,
    draft_length: DraftLength | None = None,
) -> Run:  # fmt: skip
    """Serve the workload, with prompts of real text (or random tokens if the pair has no tokenizer).

    pair: the name of the pair; if it has a closed form, the outputs are checked against it. draft_length: see
    LiveEngine.record.
    """
    from engines.live.serving.prompts import prompts_for
    from engines.live.serving.serve import serve as serve_with

    handles: list[Handle] = []
    prompted = prompts_for(engine.pair, workload, int(workload.info.get("seed", 0)))
    run = serve_with(engine, prompted, progress, on_end=handles.append, draft_length=draft_length)
    found = exactness(pair, handles)
    if found is not None:
        run.info["exactness"] = found
    return run


def exactness(pair: str, handles: Sequence[Handle]) -> dict[str, Any] | None:
    """Check greedy outputs against the closed form of a permutation pair.

    Returns how many were `checked`, how many were `equal`, and in words where the `first` difference is; None if the
    pair has no closed form.
    """
    if not pair.startswith(PREFIX) or not (spec := parse_pair(pair)).closed_form:
        return None
    checked = equal = 0
    first = ""
    for handle in handles:
        request, state = handle.request, handle.state
        if state is None or handle.error or request.temperature != 0:
            continue
        right = expected_output(spec, request.prompt or (), state.max_tokens).tolist()
        checked, equal = checked + 1, equal + (handle.tokens == right)
        if handle.tokens != right and not first:
            differing = (i for i, (a, b) in enumerate(zip(handle.tokens, right, strict=False)) if a != b)
            first = f"request {request.id}, output token {next(differing, len(handle.tokens))}"
    return {"checked": checked, "equal": equal, "first": first}


def check_finished(run: Run) -> None:
    """Raise InputError unless all requests finished."""
    unfinished = len(run.requests) - len(run.finished)
    if unfinished:
        error = next(iter(run.requests.loc[run.requests["error"] != "", "error"]), "no error recorded")
        raise InputError("requests", f"{unfinished} of {len(run.requests)} did not finish", error)


def warm_up(engine: LiveEngine, workloads: Sequence[Workload]) -> None:
    """Serve short unrecorded requests, because the first passes of a process also load and tune libraries.

    As many run at once as in the workloads, but at most WARM_UP_CLIENTS.
    """
    from engines.live.serving.prompts import prompts_for
    from engines.live.serving.serve import serve as serve_with

    clients = min(max(map(at_once, workloads)), WARM_UP_CLIENTS)
    tokens = FixedLength(min(WARM_UP_TOKENS, engine.max_context // 2))
    short = make_workload(max(clients, 4), tokens, tokens, concurrency=clients)
    serve_with(engine, prompts_for(engine.pair, short, 0), complete_tapes=False)


def free_memory() -> None:
    """Release the device memory of closed engines."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(
    pair: Pair, points: dict[str, list[int]], budget_s: float, command: str, unfinished: Path, progress: Bar
) -> Profile:
    """Calibrate the pair on its device over these points (see grid_of).

    command: the command line to record in the profile. unfinished: folder for finished parts, so that an interrupted
    calibration can resume. Raises InputError for points that the pair cannot serve.
    """
    from calibrate.measure import calibrate
    from experiments.runner.preflight import grid_of

    return calibrate(pair, grid_of(points), budget_s, command=command, keep=unfinished, progress=progress.part)
