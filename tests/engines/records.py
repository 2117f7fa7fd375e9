"""A run small enough to check by hand."""

from __future__ import annotations

from engines.policy.architecture import PDV, Segment, Step
from engines.policy.request import Emission, Request
from engines.policy.scheduler import Outcome, Scheduler
from engines.record.run import Recorder, Run, SegmentTime


def run_by_hand() -> Run:
    """Two requests through PDV with k = 4 and separate steps; times in seconds.

    Request 0 (0.0, three tokens): prefill 0-1, of which the device batches 0.1 to 0.9; draft 1.0-2.0; verify 2.0-3.0
    stretched from 0.5 to 1.0 by the prefill of request 1; one draft of four accepted, then at its end.
    Request 1 (0.5, one token): waits for the prefill lane until 1.0 and prefills until 3.0.
    """
    scheduler = Scheduler(PDV.replace(hybrid_at_or_below=0))
    recorder = Recorder()

    def finish(
        batch_id: int, outcome: Outcome, segments: list[tuple[Segment, float, float, float]], now: float
    ) -> None:
        batch = scheduler.running[batch_id]
        ended = scheduler.complete(batch, [outcome], now)
        recorder.completed(batch, [SegmentTime(*segment) for segment in segments], now)
        for state in ended:
            recorder.ended(state)
        scheduler.dispatch(now)

    scheduler.submit(Request(0, 10, 3, 0.0), 0.0)
    scheduler.dispatch(0.0)
    scheduler.submit(Request(1, 20, 1, 0.5), 0.5)
    scheduler.dispatch(0.5)
    halves = [(Segment.PREFILL_DRAFT, 0.1, 0.3, 0.2), (Segment.PREFILL_TARGET, 0.3, 0.9, 0.6)]
    finish(0, Emission(), halves, 1.0)
    draft, prefill = sorted(scheduler.running.values(), key=lambda batch: batch.step is Step.PREFILL)
    finish(draft.id, None, [(Segment.DRAFT, 1.0, 2.0, 1.0)], 2.0)
    (verify,) = (batch for batch in scheduler.running.values() if batch.step is Step.VERIFY)
    finish(verify.id, Emission(1), [(Segment.VERIFY, 2.0, 3.0, 0.5)], 3.0)
    long_halves = [(Segment.PREFILL_DRAFT, 1.0, 1.5, 0.5), (Segment.PREFILL_TARGET, 1.5, 3.0, 1.5)]
    finish(prefill.id, Emission(), long_halves, 3.0)
    return recorder.run({"name": "by hand", "seed": 3})
