"""What must hold whenever a scheduler decides, checked by an observer that keeps books of its own.

It hears what the scheduler is told and what it answers, and never reads the scheduler's queues or counters: it
derives who waits, who runs and which drafts were accepted from the events alone. Only the draft length is asked
of the controller, which has tests of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from engines.policy.architecture import Architecture, Lane, Stage, Step
from engines.policy.batch import Batch, Outcome
from engines.policy.draft_length import FixedDraftLength
from engines.policy.request import Emission, Request, Status
from engines.policy.request_state import RequestState
from engines.policy.scheduler import Scheduler
from tests.driver import Observer


class InvariantError(AssertionError):
    """A scheduler broke a rule."""

    def __init__(self, rule: str, what: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {what}")


@dataclass
class Book:
    """What the observer knows of one request."""

    request: Request
    ready_s: float
    order: int
    needs: Stage = Stage.PREFILL
    batch: int | None = None
    slot: int | None = None
    worker: tuple[str, int] | None = None  # the carrying worker that holds it
    pending: int = 0  # drafts that await verification
    cancelled: bool = False
    emitted: int = 0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    discarded: int = 0


class Candidate(NamedTuple):
    """A step that could start: its queue's stage and the request at the head."""

    stage: Stage
    head: int


class Invariants(Observer):
    """Watches a scheduler that should interpret `architecture`."""

    def __init__(self, scheduler: Scheduler, architecture: Architecture) -> None:
        self.scheduler = scheduler
        self.architecture = architecture
        self.books: dict[int, Book] = {}  # requests that are here
        self.running: dict[int, Batch] = {}
        self.seen: set[int] = set()
        self.order = itertools.count()

    # --- events -----------------------------------------------------------------------------------------

    def submitted(self, request: Request, refused: bool, now: float) -> None:
        limit = self.architecture.queue_limit
        full = limit is not None and len(self.waiting(Stage.PREFILL)) >= limit
        _require(refused == full, "queue limit", f"request {request.id} refused: {refused}, queue full: {full}")
        if not refused:
            self.books[request.id] = Book(request, now, next(self.order))

    def cancelled(self, request_id: int, ended: RequestState | None, now: float) -> None:
        book = self.books.get(request_id)
        at_once = book is not None and book.batch is None
        _require(
            (ended is not None) == at_once, "ends", f"request {request_id} cancelled while not running: {at_once}"
        )
        if book is None:
            return
        book.cancelled = True
        if ended is not None:
            self._leave(ended, Status.CANCELLED, now)

    def dispatched(self, started: Sequence[Batch], now: float) -> None:
        overtaken: list[tuple[Batch, Candidate]] = []
        for batch in started:
            candidates = self.candidates()
            self._check_start(batch, now)
            mine = Candidate(batch.step.stage, batch.members[0].id)
            overtaken += [(batch, c) for c in candidates if self._competes(c, batch) and self._before(c, mine)]
            self._start(batch)
        _require(not self.candidates(), "idle", f"could start and did not: {self.candidates()}")
        for batch, candidate in overtaken:
            kept_waiting = self.books[candidate.head].batch is None
            _require(not kept_waiting, "priority", f"{batch.step} of batch {batch.id} went before {candidate}")
        for stage in Stage:
            claimed, true = self.scheduler.queue_length(stage), len(self.waiting(stage))
            _require(claimed == true, "queue length", f"{stage}: {claimed} claimed, {true} wait")

    def completed(self, batch: Batch, outcomes: Sequence[Outcome], ended: Sequence[RequestState], now: float) -> None:
        _require(batch.id in self.running, "worker", f"batch {batch.id} completed and was not running")
        del self.running[batch.id]
        gone = {state.id for state in ended}
        for state, outcome in zip(batch.members, outcomes, strict=True):
            status = self._found(self.books[state.id], batch, outcome)
            what = f"request {state.id} after batch {batch.id}: expected {status or 'to go on'}, is {state.status}"
            _require((state.id in gone) == (status is not None), "ends", what)
            if status:
                self._leave(state, status, now)
            else:
                self._compare(state)
                self._make_ready(self.books[state.id], batch.lane, now)

    def over(self) -> None:
        _require(not self.books, "ends", f"requests {list(self.books)} never ended")
        _require(self.scheduler.idle, "ends", "the scheduler is not idle after its last request")

    # --- what the observer knows ------------------------------------------------------------------------

    def waiting(self, stage: Stage) -> list[Book]:
        """Requests that are ready for a stage, first come first."""
        ready = (book for book in self.books.values() if book.needs is stage and book.batch is None)
        return sorted(ready, key=lambda book: book.order)

    def held_slots(self) -> dict[int, int]:
        return {book.slot: id_ for id_, book in self.books.items() if book.slot is not None}

    def busy(self, lane: Lane) -> set[int]:
        """Workers of a lane that run a batch or carry a request."""
        running = {batch.worker for batch in self.running.values() if batch.lane is lane}
        return running | {
            book.worker[1] for book in self.books.values() if book.worker and book.worker[0] == lane.name
        }

    def free_permits(self, device: int) -> int:
        return self.architecture.permits_on(device) - sum(w.lane.device == device for w in self.running.values())

    @property
    def _verifies(self) -> bool:
        """Whether verify is a step of its own."""
        return any(Step.VERIFY in lane.steps for lane in self.architecture.lanes)

    def candidates(self) -> list[Candidate]:
        found = []
        for lane in self.architecture.lanes:
            if self.free_permits(lane.device) <= 0:
                continue
            for step in lane.steps:
                waiting = self.waiting(step.stage)
                found += [Candidate(step.stage, book.request.id) for book in waiting if book.worker]
                fresh = [book for book in waiting if not book.worker]
                has_slot = step is not Step.PREFILL or len(self.held_slots()) < self.architecture.slots
                if fresh and has_slot and len(self.busy(lane)) < lane.workers:
                    found.append(Candidate(step.stage, fresh[0].request.id))
        return found

    def _before(self, one: Candidate, other: Candidate) -> bool:
        """Whether `one` goes first: by priority, where there is one, then first come first."""
        order = list(self.architecture.priority)
        above = self.architecture.verify_first_above
        if above is not None and len(self.waiting(Stage.VERIFY)) - len(self.waiting(Stage.DRAFT)) > above:
            order.sort(key=lambda stage: stage is not Stage.VERIFY)

        def key(candidate: Candidate) -> tuple[int, int]:
            rank = order.index(candidate.stage) if order else 0
            return rank, self.books[candidate.head].order

        return key(one) < key(other)

    def _competes(self, candidate: Candidate, batch: Batch) -> bool:
        lane, _ = self.architecture.lane_for(candidate.stage)
        return lane.device == batch.lane.device

    # --- rules of a start -------------------------------------------------------------------------------

    def _check_start(self, batch: Batch, now: float) -> None:
        ids = [state.id for state in batch.members]
        _require(len(set(ids)) == len(ids), "duplicated", f"batch {batch.id} has {ids}")
        for id_ in ids:
            _require(id_ in self.books, "duplicated", f"request {id_} has ended, or never came")
            running = self.books[id_].batch
            _require(running is None, "duplicated", f"request {id_} is in batches {running} and {batch.id}")
        lane, queued = self.architecture.lane_for(batch.step.stage)
        _require(batch.lane is lane, "lane", f"{batch.step} ran in lane {batch.lane.name}")
        books = [self.books[id_] for id_ in ids]
        for book in books:
            _require(book.needs is batch.step.stage, "stage", f"request {book.request.id} needs {book.needs}")
        self._check_worker(batch, books)
        self._check_batch(batch, books, queued)
        self._check_hybrid(batch, queued)
        self._check_slots(batch)
        self._check_draft_lengths(batch, books)
        self._check_segments(batch)
        for book, wait in zip(books, batch.waits, strict=True):
            _require(min(wait) >= 0, "waits", f"request {book.request.id} waited {wait}")
            same = sum(wait) == pytest.approx(now - book.ready_s, abs=1e-9)
            _require(same, "waits", f"request {book.request.id}: {wait} for {now - book.ready_s} s")

    def _check_worker(self, batch: Batch, books: list[Book]) -> None:
        lane, worker = batch.lane, batch.worker
        _require(self.free_permits(lane.device) > 0, "permits", f"batch {batch.id} started without a permit")
        _require(0 <= worker < lane.workers, "worker", f"lane {lane.name} has no worker {worker}")
        running = any(w.lane is lane and w.worker == worker for w in self.running.values())
        _require(not running, "worker", f"worker {worker} of {lane.name} runs two batches")
        holder = books[0].worker
        if holder:
            _require(holder == (lane.name, worker), "carry", f"{holder} holds what worker {worker} runs")
        else:
            _require(worker not in self.busy(lane), "carry", f"worker {worker} of {lane.name} holds another request")

    def _check_batch(self, batch: Batch, books: list[Book], queued: Step) -> None:
        limit = batch.lane.steps[queued]
        _require(0 < len(books) <= limit, "batch limit", f"{len(books)} in {batch.step}, limit {limit}")
        if books[0].worker:
            return
        queue = [book for book in self.waiting(batch.step.stage) if not book.worker]
        expected = queue[: len(books)]
        got, want = ([b.request.id for b in side] for side in (books, expected))
        _require(books == expected, "order", f"batch {batch.id} took {got}, first in line are {want}")
        free = self.architecture.slots - len(self.held_slots())
        full = min(limit, len(queue), free if queued is Step.PREFILL else limit)
        _require(len(books) >= full, "batch full", f"batch {batch.id} took {len(books)} where {full} were ready")

    def _check_hybrid(self, batch: Batch, queued: Step) -> None:
        threshold = self.architecture.hybrid_at_or_below
        hybrid = queued is Step.DRAFT and len(self.held_slots()) <= threshold
        what = f"batch {batch.id} ({batch.step}) with {len(self.held_slots())} active, threshold {threshold}"
        _require(batch.hybrid == hybrid, "hybrid", what)
        _require(batch.step is (Step.DRAFT_VERIFY if hybrid else queued), "hybrid", what)

    def _check_slots(self, batch: Batch) -> None:
        held = self.held_slots()
        for state in batch.members:
            slot, before = state.slot, self.books[state.id].slot
            known = slot is not None and 0 <= slot < self.architecture.slots
            _require(known, "slots", f"request {state.id} runs in slot {slot}")
            if batch.step is Step.PREFILL:
                _require(slot not in held, "slots", f"slot {slot} is request {held.get(slot)}'s")
                held[slot] = state.id
            else:
                _require(slot == before, "slots", f"request {state.id} moved from slot {before} to {slot}")

    def _check_draft_lengths(self, batch: Batch, books: list[Book]) -> None:
        rule = self.architecture.draft_length
        low, high = (rule.k, rule.k) if isinstance(rule, FixedDraftLength) else (rule.minimum, rule.maximum)
        for book, k in zip(books, batch.draft_lengths, strict=True):
            what = f"request {book.request.id}, batch {batch.id} ({batch.step}): k = {k}"
            if batch.step is Step.PREFILL:
                _require(k == 0, "draft length", what)
            elif batch.step is Step.VERIFY:
                _require(k == book.pending, "draft length", f"{what}, drafted {book.pending}")
            else:
                _require(low <= k <= high and k == self.scheduler.controller.k, "draft length", what)

    def _check_segments(self, batch: Batch) -> None:
        """The draft model runs where something is drafted, and in prefill where anything ever can be."""
        k = max(batch.draft_lengths)
        expected = {
            Step.PREFILL: ["prefill_draft", "prefill_target"] if self._most_drafts else ["prefill_target"],
            Step.DRAFT: ["draft"],
            Step.VERIFY: ["verify"],
            Step.DRAFT_VERIFY: ["draft", "verify"] if k else ["verify"],
        }[batch.step]
        _require([s.segment for s in batch.shapes] == expected, "segments", f"batch {batch.id}: {batch.shapes}")
        if batch.step is Step.DRAFT:
            _require(k > 0, "segments", f"batch {batch.id} drafts nothing")

    @property
    def _most_drafts(self) -> int:
        return self.architecture.draft_length.maximum

    # --- bookkeeping ------------------------------------------------------------------------------------

    def _start(self, batch: Batch) -> None:
        self.running[batch.id] = batch
        for state, k in zip(batch.members, batch.draft_lengths, strict=True):
            book = self.books[state.id]
            book.batch, book.slot, book.pending = batch.id, state.slot, k
            if batch.lane.run_to_completion:
                book.worker = (batch.lane.name, batch.worker)

    def _found(self, book: Book, batch: Batch, outcome: Outcome) -> Status | None:
        """Book one member's outcome; the status it ends with, or None if it goes on."""
        if batch.step in (Step.DRAFT, Step.DRAFT_VERIFY):
            book.drafted += book.pending
        if book.cancelled:
            return Status.CANCELLED
        if isinstance(outcome, Exception):
            return Status.FAILED
        if batch.step is Step.DRAFT:
            book.needs = Stage.VERIFY
            return None
        assert isinstance(outcome, Emission)
        accepted, emitted, over = settle_token_by_token(outcome, book.pending, book.request.max_tokens - book.emitted)
        book.emitted += emitted
        book.accepted += accepted
        if emitted > accepted:  # the target's own token came before the end, so the drafts behind it were wrong
            book.rejected += book.pending - accepted
        else:
            book.discarded += book.pending - accepted
        book.needs, book.pending = Stage.DRAFT, 0
        return Status.FINISHED if over else None

    def _make_ready(self, book: Book, lane: Lane, now: float) -> None:
        if book.needs is Stage.DRAFT and self._most_drafts == 0 and self._verifies:
            book.needs = Stage.VERIFY  # there is nothing to draft
        book.batch, book.ready_s, book.order = None, now, next(self.order)
        if self.architecture.lane_for(book.needs)[0] is not lane:
            book.worker = None

    def _leave(self, state: RequestState, status: Status, now: float) -> None:
        book = self.books[state.id]
        book.discarded = book.drafted - book.accepted - book.rejected
        self._compare(state)
        _require(state.status is status, "ends", f"request {state.id} is {state.status}, not {status}")
        _require(state.finish_s == now, "ends", f"request {state.id} ended at {state.finish_s}, it is {now}")
        _require(state.id not in self.seen, "ends", f"request {state.id} ended twice")
        self.seen.add(state.id)
        del self.books[state.id]

    def _compare(self, state: RequestState) -> None:
        book = self.books[state.id]
        for name in ("emitted", "drafted", "accepted", "rejected", "discarded"):
            claimed, true = getattr(state, name), getattr(book, name)
            _require(claimed == true, "booking", f"request {state.id}: {name} is {claimed}, should be {true}")
        _require(state.emitted <= state.request.max_tokens, "booking", f"request {state.id} emitted too much")


def settle_token_by_token(emission: Emission, draft_length: int, remaining: int) -> tuple[int, int, bool]:
    """Accepted drafts, emitted tokens and whether the output is over, by walking through the tokens of a step."""
    accepted = emitted = 0
    for position in range(draft_length + 1):
        right = position < emission.matched
        emitted += 1
        accepted += right
        if emitted == remaining or emitted == emission.stop_after:
            return accepted, emitted, True
        if not right:
            break
    return accepted, emitted, False


def _require(holds: bool, rule: str, what: str) -> None:
    if not holds:
        raise InvariantError(rule, what)
