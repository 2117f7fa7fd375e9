"""What a batch costs on the host, before the device has it and after, fitted to live runs. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from calibrate.profile_tables import HOST_COLUMNS
from engines.policy.architecture import Step
from engines.record.run import Run

TYPICAL_MS = 1.0  # residuals beyond it weigh less and less: a hiccup of the machine is not the law, a busy host is
HOLD = 0.02  # how strongly a coefficient is held at 0, ms per unit; what no batch tells apart stays there
LEAST_MS = 0.1  # below it, times scatter by the same
FEWEST = 3  # batches of a step that tell a law


def host_times(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the table `host_times` of a profile: for each step a law of the host time of a batch.

    before_ms + before_per_request_ms * batch + wake_up_ms (unless back-to-back) + beside_ms * (other batches on the
    host) is the time from dispatch to the device's start, after_ms + after_per_request_ms * batch that from the
    device's end to completion. A wake-up can save time: a worker that goes on has the books of its last batch to keep
    first. A batch of draft+verify without drafts counts as a verify. All runs count together, with a loss that
    follows the mean but for hiccups. A step that fewer than FEWEST batches ran takes the law of all steps together.
    """
    batches = pd.concat([host_batches(run) for run in runs], ignore_index=True)
    rows = []
    for step in Step:
        mine = batches[batches["step"] == step]
        rows.append([str(step), *_law(mine if len(mine) >= FEWEST else batches)])
    return pd.DataFrame(rows, columns=HOST_COLUMNS)


def host_batches(run: Run) -> pd.DataFrame:
    """Return one row per batch of a run: `step`, `batch_size`, `back_to_back`, `before_ms`, `after_ms`, and `beside`,
    the other batches on the host when it was dispatched. A batch whose stream was still busy then has no
    `before_ms`."""
    batches = run.spans.groupby("batch_id").agg(
        stream=("stream", "first"), step=("step", "first"), batch_size=("batch_size", "first"),
        back_to_back=("back_to_back", "first"), dispatched_s=("dispatched_s", "first"), start_s=("start_s", "min"),
        end_s=("end_s", "max"), completed_s=("completed_s", "first"), draft_length=("draft_length", "max"),
    ).sort_values("start_s")  # fmt: skip
    undrafted = (batches["step"] == Step.DRAFT_VERIFY) & (batches["draft_length"] == 0)
    batches["step"] = batches["step"].where(~undrafted, str(Step.VERIFY))
    free_s = batches.groupby("stream")["end_s"].shift().fillna(-np.inf)
    dispatched, start, end, completed = (
        np.sort(batches[name].to_numpy()) for name in ("dispatched_s", "start_s", "end_s", "completed_s")
    )
    moments = batches["dispatched_s"].to_numpy()
    # Those on the host have been dispatched and not started, or have ended on the device and are not completed.
    waiting = np.searchsorted(dispatched, moments, "right") - np.searchsorted(start, moments, "right")
    reading = np.searchsorted(end, moments, "right") - np.searchsorted(completed, moments, "right")
    before_ms = 1e3 * (batches["start_s"] - batches["dispatched_s"]).where(free_s <= batches["dispatched_s"])
    return pd.DataFrame(
        {
            **batches[["step", "batch_size", "back_to_back"]],
            "beside": waiting + reading - 1,
            "before_ms": before_ms.clip(lower=0.0),
            "after_ms": 1e3 * (batches["completed_s"] - batches["end_s"]).clip(lower=0.0),
        }
    ).reset_index(drop=True)


def _law(batches: pd.DataFrame) -> list[float]:
    """The coefficients of one step, in the order of HOST_COLUMNS."""
    timed = batches.dropna(subset="before_ms")
    one = np.ones(len(timed))
    before = np.column_stack([one, timed["batch_size"], ~timed["back_to_back"].astype(bool), timed["beside"]])
    after = np.column_stack([np.ones(len(batches)), batches["batch_size"]])
    base, per_request, wake_up, beside = _fit(before.astype(float), timed["before_ms"], signed=2)
    return [base, per_request, max(wake_up, -base), beside, *_fit(after.astype(float), batches["after_ms"])]


def _fit(columns: np.ndarray, measured_ms: pd.Series, signed: int | None = None) -> list[float]:
    """Return the coefficients of a robust linear fit, 0 or more but for the column `signed`.

    Long times scatter more than short ones, so a second fit weighs errors relative to what the first one predicts.
    """
    from scipy.optimize import least_squares  # takes 0.2 s to import

    scale = np.maximum(columns.max(axis=0, initial=1.0), 1.0)
    measured = measured_ms.to_numpy(float)
    known = np.concatenate([[0.0], np.ones(columns.shape[1] - 1)])  # the constant is free
    least = [-np.inf if i == signed else 0.0 for i in range(columns.shape[1])]
    found = np.full(columns.shape[1], max(float(np.median(measured)) if len(measured) else 0.0, 1e-3) / 2)
    spread = np.ones(len(measured))
    for _ in range(2):

        def errors(x: np.ndarray, spread: np.ndarray = spread) -> np.ndarray:
            return np.concatenate([(columns / scale @ x - measured) / spread, HOLD * known * x])

        found = least_squares(errors, found, bounds=(least, np.inf), loss="soft_l1", f_scale=TYPICAL_MS).x
        predicted = columns / scale @ found
        spread = np.maximum(predicted, LEAST_MS) / max(float(predicted.mean()), LEAST_MS) if len(measured) else spread
    return (found / scale).tolist()
