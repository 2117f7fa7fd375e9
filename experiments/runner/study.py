"""The layouts that are studied: every architecture over concurrency, limits, permits and what can be switched off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Step
from engines.policy.draft_length import AdaptiveDraftLength

SLOTS = 64
ALL, FEW, LARGE = (1, 3, 5, 10, 16, 32, 64), (1, 3, 5, 10), (10, 32, 64)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is measured: an architecture under a name that says what is special about it, and for which loads."""

    study: str
    name: str
    architecture: Architecture
    clients: tuple[int, ...]


def layouts() -> Iterator[Layout]:
    """The whole study, most important first; every layout has SLOTS slots."""
    for layout in _layouts():
        yield dataclasses.replace(layout, architecture=layout.architecture.replace(slots=SLOTS))


def _layouts() -> Iterator[Layout]:
    pd_equal, pdv_equal = _limits(PD, 4, 64, 64), _limits(PDV, 4, 64, 64)
    yield Layout("default limits", "PD 1/6", PD, ALL)
    yield Layout("default limits", "PDV 1/6/12", PDV, ALL)
    yield Layout("default limits", "baseline, 4 workers", BASELINE, FEW)
    (worker,) = BASELINE.lanes
    yield Layout(
        "default limits", "baseline, 8 workers",
        BASELINE.replace(lanes=(dataclasses.replace(worker, workers=8),)), FEW,
    )  # fmt: skip
    yield Layout("equal limits", "PD 4/64", pd_equal, ALL)
    yield Layout("equal limits", "PDV 4/64/64", pdv_equal, ALL)
    yield Layout("permits", "PD 4/64, one permit", pd_equal.replace(permits=1), LARGE)
    yield Layout("permits", "PDV 4/64/64, one permit", pdv_equal.replace(permits=1), LARGE)
    yield Layout("ablations at 10", "PDV 1/6/12, hybrid off", PDV.replace(hybrid_at_or_below=0), (1, 10))
    yield Layout("ablations at 10", "PDV 1/6/12, hybrid to 3", PDV.replace(hybrid_at_or_below=3), (3, 10))
    yield Layout("ablations at 10", "PDV 1/6/12, fixed priority", PDV.replace(verify_first_above=None), (10,))
    one_permit = PDV.replace(permits=1)
    yield Layout("ablations at 10", "PDV 1/6/12, one permit, dynamic priority", one_permit, (10,))
    yield Layout(
        "ablations at 10", "PDV 1/6/12, one permit, fixed priority",
        one_permit.replace(verify_first_above=None), (10,),
    )  # fmt: skip
    adaptive = AdaptiveDraftLength()
    yield Layout("ablations at 10", "PD 1/6, adaptive k", PD.replace(draft_length=adaptive), (10,))
    yield Layout("ablations at 10", "PDV 1/6/12, adaptive k", PDV.replace(draft_length=adaptive), (10,))
    yield Layout("ablations at 10", "PD 1/6, one stream", _one_stream(PD), (10,))
    yield Layout("ablations at 10", "PDV 1/6/12, one stream", _one_stream(PDV), (10,))
    for prefill in (2, 8):
        yield Layout("best limits", f"PD {prefill}/64", _limits(PD, prefill, 64, 64), (10, 64))
    yield Layout("best limits", "PDV 8/32/64", _limits(PDV, 8, 32, 64), (10, 64))
    yield Layout("best limits", "PDV 8/64/64", _limits(PDV, 8, 64, 64), (64,))


def _limits(architecture: Architecture, prefill: int, draft: int, verify: int) -> Architecture:
    sizes = {Step.PREFILL: prefill, Step.DRAFT: draft, Step.DRAFT_VERIFY: draft, Step.VERIFY: verify}
    return architecture.with_batch_limits(sizes)


def _one_stream(architecture: Architecture) -> Architecture:
    return architecture.replace(lanes=tuple(dataclasses.replace(lane, stream=0) for lane in architecture.lanes))
