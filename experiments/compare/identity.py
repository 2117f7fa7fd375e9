"""Identify runs regardless of their folder, to match each replay with its live run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from engines.errors import InputError
from engines.record.run import Run

MEASURED = [
    "request", "arrival_s", "prefill_start_s", "first_token_s", "finish_s", "prompt_tokens", "max_tokens",
    "output_tokens", "drafted", "accepted",
]  # fmt: skip
ASKED = ["arrival_s", "prompt_tokens", "max_tokens"]
CLOCK_S = 1e-6
"""Largest difference between a recorded arrival and its replay, since sums of waits are rounded."""


def identity(run: Run) -> str:
    """Return a digest of what happened to every request and when.

    No two live runs have the same digest. Copying, renaming or moving a run does not change it.
    """
    table = run.requests[MEASURED].to_numpy("<f8")
    table[np.isnan(table)] = np.nan  # one bit pattern for all nan
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()[:16]


def replayed_runs(replays: Sequence[Run], lives: Sequence[Run]) -> list[Run]:
    """Return the live run of each replay.

    A replay records the identity of its live run. Older replays only record its name; they match if exactly one live
    run has that name and the same requests at the same times. Raises InputError for a replay whose live run is not
    among those given.
    """
    identities = [identity(live) for live in lives] if replays else []
    return [_replayed(replay, lives, identities) for replay in replays]


def _replayed(replay: Run, lives: Sequence[Run], identities: Sequence[str]) -> Run:
    name, recorded = str(replay.info["replays"]), replay.info.get("replays_id")
    namesakes = [live for live in lives if live.name == name]
    if recorded is not None:
        found = [live for live, known in zip(lives, identities, strict=True) if known == recorded]
        if found:
            return next((live for live in found if live.name == name), found[0])
        which = "a different live run of this name" if namesakes else "a run that is not among the live runs"
        raise InputError("replays", name, f"{replay.name} replays {which}; give that run, or leave the replay out")
    if len(namesakes) != 1:
        reason = f"{len(namesakes) or 'none'} of the live runs {'have' if namesakes else 'has'} this name"
        raise InputError("replays", name, f"{reason}; give the one that {replay.name} replays, or replay it again")
    if not _asked_the_same(namesakes[0], replay):
        reason = "the live run of this name has other requests or arrival times"
        raise InputError("replays", name, f"{reason}; give the one that {replay.name} replays, or replay it again")
    return namesakes[0]


def _asked_the_same(live: Run, replay: Run) -> bool:
    """Return whether every request of the replay is one of the live run's."""
    live_rows, rows = (run.requests.set_index("request")[ASKED].astype(float) for run in (live, replay))
    if not rows.index.isin(live_rows.index).all():
        return False
    return bool(np.allclose(rows, live_rows.loc[rows.index], rtol=0.0, atol=CLOCK_S))
