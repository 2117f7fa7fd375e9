"""Streams are FIFOs, and what runs together is re-rated whenever a segment starts or ends."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
import simpy

from calibrate.contention import NoContention, RunningSegment
from engines.errors import InputError
from engines.policy.architecture import Segment
from engines.record.run import SegmentTime
from sim.cost_protocols import Contention
from sim.gpu import Gpu

DRAFT = RunningSegment(Segment.DRAFT, 1, 0.01)
VERIFY = RunningSegment(Segment.VERIFY, 1, 0.02)
Job = tuple[float, int, list[tuple[RunningSegment, float]]]  # when, stream, segments


class Fixed:
    """Two together: draft at 0.4 and verify at 0.8; three or more at 0.25 each."""

    def rates(self, running: Sequence[RunningSegment]) -> list[float]:
        if len(running) < 2:
            return [1.0] * len(running)
        if len(running) > 2:
            return [0.25] * len(running)
        return [0.4 if one.segment is Segment.DRAFT else 0.8 for one in running]


def play(jobs: list[Job], contention: Contention) -> list[list[SegmentTime]]:
    environment = simpy.Environment()
    gpu = Gpu(environment, contention)
    times: dict[int, list[SegmentTime]] = {}

    def job(number: int, at: float, stream: int, segments: list[tuple[RunningSegment, float]]) -> Generator:
        yield environment.timeout(at)
        times[number] = yield gpu.run(stream, segments)

    for number, (at, stream, segments) in enumerate(jobs):
        environment.process(job(number, at, stream, segments))
    environment.run()
    return [times[number] for number in range(len(jobs))]


def test_two_overlapping_segments_by_hand() -> None:
    """Draft (2 s alone) from 0; verify (1.2 s alone) from 1. Together from 1 on: draft has 1 s of batch left at rate
    0.4, verify ends first, at 1 + 1.2 / 0.8 = 2.5; draft did 0.6 meanwhile and does the other 0.4 alone until 2.9."""
    draft, verify = play([(0.0, 0, [(DRAFT, 2.0)]), (1.0, 1, [(VERIFY, 1.2)])], Fixed())
    assert draft == [SegmentTime(Segment.DRAFT, 0.0, pytest.approx(2.9), 2.0)]
    assert verify == [SegmentTime(Segment.VERIFY, 1.0, pytest.approx(2.5), 1.2)]


def test_the_next_segment_of_a_piece_is_rated_anew() -> None:
    """Draft then verify (1 s each) on stream 0 beside a verify (4 s) on stream 1: the draft takes 1 / 0.4 = 2.5 s,
    then two verifies run at 0.8 each: 1.25 s, until 3.75; the other did 2 + 1 of its 4 and ends at 4.75."""
    pair, other = play([(0.0, 0, [(DRAFT, 1.0), (VERIFY, 1.0)]), (0.0, 1, [(VERIFY, 4.0)])], Fixed())
    assert [t.end_s for t in pair] == pytest.approx([2.5, 3.75])
    assert [t.start_s for t in pair] == pytest.approx([0.0, 2.5])
    assert other[0].end_s == pytest.approx(4.75)


def test_three_streams_by_hand() -> None:
    times = play([(0.0, stream, [(DRAFT, 1.0)]) for stream in range(3)], Fixed())
    assert [t[0].end_s for t in times] == pytest.approx([4.0, 4.0, 4.0])


def test_a_stream_is_a_fifo_and_a_piece_is_atomic() -> None:
    jobs = [(0.0, 0, [(DRAFT, 1.0), (VERIFY, 1.0)]), (0.1, 0, [(VERIFY, 1.0)]), (0.2, 0, [(DRAFT, 1.0)])]
    times = play(jobs, Fixed())
    assert [(t.start_s, t.end_s) for job in times for t in job] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_without_contention_streams_do_not_feel_each_other() -> None:
    jobs = [(0.3 * n, n, [(DRAFT, 1.0 + n)]) for n in range(4)]
    for (at, _, segments), (time,) in zip(jobs, play(jobs, NoContention()), strict=True):
        assert time.end_s - at == pytest.approx(segments[0][1])


@pytest.mark.parametrize(("at", "duration_s"), [(1e9, 1e-9), (1e15, 0.01), (0.0, float("nan"))])
def test_a_clock_that_would_stand_still_is_an_error(at: float, duration_s: float) -> None:
    with pytest.raises(InputError, match=r"duration of draft .* does not advance the clock"):
        play([(at, 0, [(DRAFT, duration_s)])], Fixed())


def test_work_that_takes_no_time_is_no_error() -> None:
    assert play([(2.0, 0, [(DRAFT, 0.0), (VERIFY, 1.0)])], Fixed())[0][1].end_s == 3.0


def test_work_is_conserved() -> None:
    """Rates that add up to 1: however the starts fall, the device is busy for all the batch there is."""

    class Halves:
        def rates(self, running: Sequence[RunningSegment]) -> list[float]:
            return [1 / len(running)] * len(running)

    jobs = [(0.11 * n, n % 3, [(DRAFT, 0.7 + 0.1 * (n % 4)), (VERIFY, 0.3)]) for n in range(12)]
    times = play(jobs, Halves())
    assert max(t.end_s for job in times for t in job) == pytest.approx(sum(s for _, _, ss in jobs for _, s in ss))
