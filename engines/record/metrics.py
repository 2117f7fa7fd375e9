"""Compute metrics of a Run: latencies, throughput, utilisation, and where each request's time went.

The functions read nothing but the Run, so live and simulated runs are measured by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from engines.policy.architecture import device_of
from engines.record.run import Run

PARTS = [
    "admission_wait", "prefill_queue", "draft_queue", "verify_queue", "permit_wait", "stream_wait",
    "dispatch_overhead", "prefill", "draft", "verify", "contention", "wasted_drafts",
]  # fmt: skip
DEPTHS = (1, 2, 3)  # concurrent segments, for device_utilisation
QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def request_times(run: Run) -> pd.DataFrame:
    """Return ttft_s, tpot_s (nan for one-token outputs) and latency_s per finished request (index)."""
    done = run.finished.set_index("request")
    latency = done["finish_s"] - done["arrival_s"]
    ttft = done["first_token_s"] - done["arrival_s"]
    later = (done["output_tokens"] - 1).where(done["output_tokens"] > 1)
    return pd.DataFrame({"ttft_s": ttft, "tpot_s": (latency - ttft) / later, "latency_s": latency})


def inter_token_latency(run: Run) -> pd.Series:
    """Return the seconds between consecutive target passes of each finished request, one value per verify step.

    Tokens arrive in groups, so this is the time between groups, not between single tokens.
    """
    emitting = run.steps[(run.steps["emitted"] > 0) & run.steps["request"].isin(run.finished["request"])]
    completed = run.spans.groupby("batch_id")["completed_s"].first()
    moments = emitting.assign(t=emitting["batch_id"].map(completed)).sort_values(["request", "t"])
    return moments.groupby("request")["t"].diff().dropna().rename("inter_token_latency_s")


def summary(run: Run) -> dict[str, float]:
    """Return the metrics of a run by name.

    These are the mean and quantiles (linear interpolation) of TTFT, TPOT and latency in seconds; the throughput in
    output tokens and requests per second, for a closed loop also within its steady window (of steady_s seconds);
    acceptance, batch sizes, busy workers and utilisation.
    """
    parts = (acceptance(run), batch_sizes(run), lane_busy(run), device_utilisation(run))
    return request_summary(run, emitted_between(run)) | {
        name: value for part in parts for name, value in part.items()
    }


def request_summary(run: Run, emitted: Callable[[float, float], int]) -> dict[str, float]:
    """Return the part of the summary that needs only the table of requests.

    emitted: tells how many output tokens there were after one time and until another, in seconds.
    """
    out: dict[str, float] = {}
    times = request_times(run)
    for column in times:
        values = times[column].to_numpy()
        values = values[~np.isnan(values)]
        if not len(values):
            values = np.array([np.nan])
        out[f"{column}.mean"] = float(values.mean())
        quantiles = np.quantile(values, list(QUANTILES.values())).tolist()
        out |= {f"{column}.{name}": value for name, value in zip(QUANTILES, quantiles, strict=True)}
    finished, duration_s = run.finished, run.duration_s
    out["throughput_tokens_per_s"] = per_second(float(finished["output_tokens"].sum()), duration_s)
    out["throughput_requests_per_s"] = per_second(len(finished), duration_s)
    start_s, end_s = steady_window(run)
    steady = start_s < end_s
    out["steady_throughput_tokens_per_s"] = emitted(start_s, end_s) / (end_s - start_s) if steady else float("nan")
    out["steady_s"] = max(end_s - start_s, 0.0)  # nan stays nan
    return out


def steady_window(run: Run) -> tuple[float, float]:
    """Return the start and end, in seconds, of the time during which all clients of a closed loop were being served.

    It starts when the last of the first `concurrency` requests has its first token, and ends when the first client
    has nothing more to send. It is empty (start not before end) if there were too few requests, and nan for an open
    loop.
    """
    clients = run.info.get("workload", {}).get("concurrency")
    if clients is None:
        return float("nan"), float("nan")
    first = run.requests.sort_values(["arrival_s", "request"])[:clients]
    served = first["first_token_s"].fillna(first["finish_s"])
    ends = run.requests["finish_s"].sort_values()
    return float(served.max()), float(ends.iloc[max(len(ends) - clients, 0)])


def steady_throughput(run: Run) -> float:
    """Return the output tokens per second within the steady window, including those of unfinished requests.

    Returns nan if the steady window is empty or the loop is open.
    """
    return request_summary(run, emitted_between(run))["steady_throughput_tokens_per_s"]


def emitted_between(run: Run) -> Callable[[float, float], int]:
    """Return a function that counts the output tokens after one time and until another, in seconds."""

    def count(start_s: float, end_s: float) -> int:
        completed = run.steps["batch_id"].map(run.spans.groupby("batch_id")["completed_s"].first())
        within = (completed > start_s) & (completed <= end_s)
        return int(run.steps.loc[within, "emitted"].sum())

    return count


def acceptance(run: Run) -> dict[str, float]:
    """Return the acceptance rate and length.

    acceptance_rate: accepted / drafted. acceptance_length: tokens emitted per verify, the target's own included.
    """
    requests, verifies = run.requests, run.steps[run.steps["position"] > 0]
    verifies = verifies[verifies["emitted"] > 0]
    drafted = requests["drafted"].sum()
    return {
        "acceptance_rate": float(requests["accepted"].sum() / drafted) if drafted else float("nan"),
        "acceptance_length": float(verifies["emitted"].mean()) if len(verifies) else float("nan"),
    }


def batch_sizes(run: Run) -> dict[str, float]:
    """Return the mean batch size per segment."""
    means = run.spans.groupby("segment")["batch_size"].mean()
    return {f"batch_size.{segment}": float(size) for segment, size in means.items()}


def lane_busy(run: Run) -> dict[str, float]:
    """Return how many workers of each lane were running a step, averaged over the run's duration."""
    busy = (run.spans["end_s"] - run.spans["start_s"]).groupby(run.spans["lane"]).agg(math.fsum)
    duration_s = run.duration_s
    return {f"lane_busy.{lane}": per_second(seconds, duration_s) for lane, seconds in busy.items()}


def device_utilisation(run: Run) -> dict[str, float]:
    """Return the fraction of the run's duration with at least N (1, 2, 3) segments running on a device.

    running_at_least_N is the mean over devices. If there are several, running_at_least_N.device_D is the fraction for
    device D. A device on which nothing ran counts as idle.
    """
    spans = run.spans
    used = spans["device"].unique().tolist()
    return utilisation(run, {device: overlap_s(spans[spans["device"] == device]) for device in used})


def utilisation(run: Run, seconds: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """Return device_utilisation, given for how long at least N (1, 2, 3) segments ran on each device."""
    lanes = run.info.get("architecture", {}).get("lanes", ())
    own = [lane.get("device", 0) for lane in lanes]
    known = {device_of(replica, device, own) for replica in range(run.info.get("replicas", 1)) for device in own}
    devices = sorted(known | set(seconds)) or [0]
    idle, duration_s = [0.0] * len(DEPTHS), run.duration_s
    shares = {device: [per_second(held, duration_s) for held in seconds.get(device, idle)] for device in devices}
    names = [f"running_at_least_{n}" for n in DEPTHS]
    out = dict(zip(names, np.mean(list(shares.values()), axis=0).tolist(), strict=True))
    if len(devices) > 1:
        for device, own in shares.items():
            out |= {f"{name}.device_{device}": share for name, share in zip(names, own, strict=True)}
    return out


def overlap_s(spans: pd.DataFrame) -> list[float]:
    """Return for how long at least N of these spans ran, for each N in DEPTHS."""
    times = np.concatenate([spans["start_s"], spans["end_s"]])
    change = np.concatenate([np.ones(len(spans)), -np.ones(len(spans))])
    order = np.lexsort((change, times))
    times, depth = times[order], np.cumsum(change[order])
    held = np.diff(times, append=times[-1:])
    return [math.fsum(held[depth >= n]) for n in DEPTHS]


def goodput(run: Run, ttft_s: float, tpot_s: float) -> float:
    """Return the requests per second that met both objectives (seconds)."""
    times = request_times(run)
    met = (times["ttft_s"] <= ttft_s) & (times["tpot_s"].fillna(0) <= tpot_s)
    return per_second(float(met.sum()), run.duration_s)


def per_second(amount: float, duration_s: float) -> float:
    """Divide by a run's duration. Returns nan if that is 0, for instance because every request was rejected."""
    return amount / duration_s if duration_s > 0 else float("nan")


def decompose(run: Run) -> pd.DataFrame:
    """Return where each finished request's latency went, in seconds. The columns PARTS add up to latency_s.

    admission_wait: no slot was free. *_queue: the lane was busy. permit_wait: the lane was free, but the device had
    no permit. stream_wait: the batch was dispatched, but its stream was still running another worker's.
    dispatch_overhead: the rest of the time from dispatch to completion that was not spent on the device.
    prefill, draft, verify: solo duration on the device. contention: how much longer the segments took because other
    streams ran at the same time (0 if the record has no solo durations). wasted_drafts: the share of draft that was
    spent on drafts that were not accepted.
    """
    spans = run.spans
    length = spans["end_s"] - spans["start_s"]
    contention = (length - spans["solo_s"]).fillna(0.0)
    stage = spans["segment"].where(~spans["segment"].str.startswith("prefill"), "prefill")
    stream_wait = _stream_wait(spans)
    batches = pd.DataFrame(
        {
            "stream_wait": stream_wait,
            "dispatch_overhead": spans.groupby("batch_id")["completed_s"].first()
            - spans.groupby("batch_id")["dispatched_s"].first()
            - length.groupby(spans["batch_id"]).sum()
            - stream_wait,
            "contention": contention.groupby(spans["batch_id"]).sum(),
            "stage": stage.groupby(spans["batch_id"]).first(),
        }
    )
    solo = (length - contention).groupby([spans["batch_id"], stage]).sum().unstack(fill_value=0)
    solo = solo.reindex(columns=["prefill", "draft", "verify"], fill_value=0)
    steps = run.steps[run.steps["request"].isin(run.finished["request"])]
    steps = steps.join(batches.join(solo), on="batch_id").reset_index(drop=True)
    wasted = _wasted_share(steps)
    parts = pd.DataFrame(
        {
            "request": steps["request"],
            "admission_wait": steps["admission_s"],
            **{
                f"{s}_queue": steps["queue_s"].where(steps["stage"] == s, 0.0) for s in ("prefill", "draft", "verify")
            },
            "permit_wait": steps["permit_s"],
            "stream_wait": steps["stream_wait"],
            "dispatch_overhead": steps["dispatch_overhead"],
            "prefill": steps["prefill"],
            "draft": steps["draft"] * (1 - wasted),
            "verify": steps["verify"],
            "contention": steps["contention"],
            "wasted_drafts": steps["draft"] * wasted,
        }
    )
    return parts.groupby("request")[PARTS].sum().join(request_times(run)["latency_s"])


def _stream_wait(spans: pd.DataFrame) -> pd.Series:
    """Return, per batch, the seconds from its dispatch to the end of what its stream ran before it."""
    batches = spans.groupby("batch_id").agg(
        stream=("stream", "first"), device=("device", "first"), dispatched_s=("dispatched_s", "first"),
        start_s=("start_s", "min"), end_s=("end_s", "max"),
    )  # fmt: skip
    before = batches.sort_values("start_s").groupby(["device", "stream"])["end_s"].shift().fillna(-np.inf)
    return (np.minimum(before, batches["start_s"]) - batches["dispatched_s"]).clip(lower=0.0)


def _wasted_share(steps: pd.DataFrame) -> pd.Series:
    """Return the share of each row's drafts that were not accepted.

    For a separate draft step, it is that of the request's next verify step.
    """
    lost = (steps["rejected"] + steps["discarded"]).astype(float)
    settled = steps["emitted"] > 0
    following = lost.where(settled & (steps["draft_length"] > 0)).groupby(steps["request"]).bfill()
    return (following / steps["draft_length"].where(steps["draft_length"] > 0)).fillna(0.0).clip(0.0, 1.0)
