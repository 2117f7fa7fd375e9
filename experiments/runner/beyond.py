"""What a prediction does beyond its profile, which only happens if extrapolation is asked for."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from engines.policy.architecture import Segment
from engines.policy.request import Request
from sim.cost_protocols import DIMENSIONS, MeasuredCosts


def beyond_of_fleet(metrics: pd.DataFrame) -> dict[str, int]:
    """Return Deployment.segments from the metrics of a fleet."""
    row = metrics.to_dict("index")["fleet"]
    own = {name: int(row[f"beyond_profile.{name}"]) for name in DIMENSIONS}
    return {"segments": int(row["segments"]), "beyond": int(row["beyond_profile"]), **own}


def requests_beyond(
    requests: Iterable[Request], costs: MeasuredCosts, max_context: int | None, positions: int
) -> dict[str, int]:
    """Return how many requests go beyond the profile on their own, whatever they are batched with.

    requests: those whose prompt is longer than any measured prefill, or whose context grows beyond that of any
    measured draft or verify. too_long: those whose context grows beyond `positions`, the tokens that the models
    support. A request to which max_context leaves no room does not run, and does not count.
    """
    covered = {segment: costs.covered(segment) for segment in Segment}
    longest_prompt = min(covered[s]["tokens"][1] for s in (Segment.PREFILL_DRAFT, Segment.PREFILL_TARGET))
    longest_context = min(covered[s]["context_tokens"][1] for s in (Segment.DRAFT, Segment.VERIFY))
    beyond = too_long = 0
    for request in requests:
        prompt, output = request.prompt_tokens, request.max_tokens
        if max_context is not None:
            output = min(output, max_context - prompt)
        if output > 0:
            beyond += prompt > longest_prompt or prompt + output > longest_context
            too_long += prompt + output > positions
    return {"requests": beyond, "too_long": too_long}


def beyond_text(found: dict[str, int], requests: int) -> str:
    """Return what lies beyond the profile in words. found: `beyond_profile` of a record.

    requests: how many there are.
    """
    if not found["beyond"] and not found["too_long"]:
        return "nothing"
    shares = [f"{name} {found[name] / found['segments']:.1%}" for name in DIMENSIONS if found[name]]
    text = f"{found['beyond'] / found['segments']:.1%} of the segments ({', '.join(shares)}), "
    text += f"{found['requests']:,} of {requests:,} requests"
    longer = f"; {found['too_long']:,} requests are longer than the models support" if found["too_long"] else ""
    return text + longer
