"""What a Run says: latencies, throughput, utilisation, and where each request's time went.

Every function takes a Run and nothing else, so live and simulated runs are measured by the same code.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from engines.record.run import Run

PARTS = [
    "admission_wait", "prefill_queue", "draft_queue", "verify_queue", "permit_wait", "stream_wait",
    "dispatch_overhead", "prefill", "draft", "verify", "contention", "wasted_drafts",
]  # fmt: skip
DEPTHS = (1, 2, 3)  # segments at once, of device_utilisation
QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def request_times(run: Run) -> pd.DataFrame:
    """Per finished request (index): ttft_s, tpot_s (nan for one-token outputs), latency_s."""
    done = run.finished.set_index("request")
    latency = done["finish_s"] - done["arrival_s"]
    ttft = done["first_token_s"] - done["arrival_s"]
    later = (done["output_tokens"] - 1).where(done["output_tokens"] > 1)
    return pd.DataFrame({"ttft_s": ttft, "tpot_s": (latency - ttft) / later, "latency_s": latency})


def inter_token_latency(run: Run) -> pd.Series:
    """Seconds between a finished request's consecutive target passes, per verify step: tokens arrive in
    groups, so this is the wait between groups and not between single tokens."""
    emitting = run.steps[(run.steps["emitted"] > 0) & run.steps["request"].isin(run.finished["request"])]
    completed = run.spans.groupby("batch_id")["completed_s"].first()
    moments = emitting.assign(t=emitting["batch_id"].map(completed)).sort_values(["request", "t"])
    return moments.groupby("request")["t"].diff().dropna().rename("inter_token_latency_s")


def summary(run: Run) -> dict[str, float]:
    """The run in numbers: mean and quantiles (linear interpolation) of TTFT, TPOT and latency in seconds,
    throughput (output tokens and requests per second; of a closed loop also while all clients were served, in a
    window of steady_s seconds), acceptance, batch sizes, busy time and utilisation."""
    out: dict[str, float] = {}
    times = request_times(run)
    for column in times:
        values = times[column].dropna()
        out[f"{column}.mean"] = float(values.mean()) if len(values) else float("nan")
        for name, q in QUANTILES.items():
            out[f"{column}.{name}"] = float(values.quantile(q)) if len(values) else float("nan")
    out["throughput_tokens_per_s"] = _over_duration(float(run.finished["output_tokens"].sum()), run)
    out["throughput_requests_per_s"] = _over_duration(len(run.finished), run)
    start_s, end_s = steady_window(run)
    out["steady_throughput_tokens_per_s"] = steady_throughput(run)
    out["steady_s"] = max(end_s - start_s, 0.0)  # nan stays nan
    out |= acceptance(run) | batch_sizes(run) | lane_busy(run) | device_utilisation(run)
    return out


def steady_window(run: Run) -> tuple[float, float]:
    """When a closed loop was at its full load: from the moment at which the last of the first `concurrency` requests
    had its first token, so that all clients were being served, to that at which the first client ran dry, because
    no request was left to submit. Empty (start not before end) where there were too few requests; nan for an open
    loop."""
    clients = run.info.get("workload", {}).get("concurrency")
    if clients is None:
        return float("nan"), float("nan")
    first = run.requests.sort_values(["arrival_s", "request"])[:clients]
    served = first["first_token_s"].fillna(first["finish_s"])
    ends = run.requests["finish_s"].sort_values()
    return float(served.max()), float(ends.iloc[max(len(ends) - clients, 0)])


def steady_throughput(run: Run) -> float:
    """Output tokens a second of a closed loop while its load was full (steady_window), those of unfinished requests
    included; nan where it never was."""
    start_s, end_s = steady_window(run)
    if not start_s < end_s:
        return float("nan")
    completed = run.steps["batch_id"].map(run.spans.groupby("batch_id")["completed_s"].first())
    within = (completed > start_s) & (completed <= end_s)
    return float(run.steps.loc[within, "emitted"].sum()) / (end_s - start_s)


def acceptance(run: Run) -> dict[str, float]:
    """acceptance_rate: accepted / drafted. acceptance_length: tokens emitted per verify, own token included."""
    requests, verifies = run.requests, run.steps[run.steps["position"] > 0]
    verifies = verifies[verifies["emitted"] > 0]
    drafted = requests["drafted"].sum()
    return {
        "acceptance_rate": float(requests["accepted"].sum() / drafted) if drafted else float("nan"),
        "acceptance_length": float(verifies["emitted"].mean()) if len(verifies) else float("nan"),
    }


def batch_sizes(run: Run) -> dict[str, float]:
    """Mean batch size of each segment, over its batches."""
    means = run.spans.groupby("segment")["batch_size"].mean()
    return {f"batch_size.{segment}": float(size) for segment, size in means.items()}


def lane_busy(run: Run) -> dict[str, float]:
    """How many of a lane's workers were running a step, on average over the run's duration."""
    busy = (run.spans["end_s"] - run.spans["start_s"]).groupby(run.spans["lane"]).sum()
    return {f"lane_busy.{lane}": _over_duration(float(seconds), run) for lane, seconds in busy.items()}


def device_utilisation(run: Run) -> dict[str, float]:
    """Fraction of the run's duration with at least one, two, three segments under way on a device, as
    running_at_least_N. Where the run has several devices this is the mean over them, and each one's own is
    running_at_least_N.device_D; one on which nothing ran counts as idle."""
    lanes = run.info.get("architecture", {}).get("lanes", ())
    devices = sorted({lane.get("device", 0) for lane in lanes} | set(run.spans["device"].unique().tolist())) or [0]
    shares = {device: _running(run, run.spans[run.spans["device"] == device]) for device in devices}
    names = [f"running_at_least_{n}" for n in DEPTHS]
    out = dict(zip(names, np.mean(list(shares.values()), axis=0).tolist(), strict=True))
    if len(devices) > 1:
        for device, own in shares.items():
            out |= {f"{name}.device_{device}": share for name, share in zip(names, own, strict=True)}
    return out


def _running(run: Run, spans: pd.DataFrame) -> list[float]:
    """Fraction of the run's duration with at least as many of these spans under way as each of DEPTHS."""
    times = np.concatenate([spans["start_s"], spans["end_s"]])
    change = np.concatenate([np.ones(len(spans)), -np.ones(len(spans))])
    order = np.lexsort((change, times))
    times, depth = times[order], np.cumsum(change[order])
    held = np.diff(times, append=times[-1:])
    return [_over_duration(float(held[depth >= n].sum()), run) for n in DEPTHS]


def goodput(run: Run, ttft_s: float, tpot_s: float) -> float:
    """Requests a second that met both objectives."""
    times = request_times(run)
    met = (times["ttft_s"] <= ttft_s) & (times["tpot_s"].fillna(0) <= tpot_s)
    return _over_duration(float(met.sum()), run)


def _over_duration(amount: float, run: Run) -> float:
    """nan where nothing took any time, as when every request was refused."""
    return amount / run.duration_s if run.duration_s > 0 else float("nan")


def decompose(run: Run) -> pd.DataFrame:
    """Where each finished request's latency went, seconds; the columns PARTS sum to latency_s.

    admission_wait: no slot was free. *_queue: the lane was busy. permit_wait: the lane was free, the device
    had no permit. stream_wait: the step was decided, its stream still ran another worker's. dispatch_overhead: the
    rest of the time between decision and device, and back. prefill, draft, verify: on the device. contention:
    longer than alone, because others ran too (0 where the record does not know the solo time). wasted_drafts: the
    share of draft that went into drafts which were not accepted.
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
    """Seconds, by batch, between a step's dispatch and the end of what its stream ran before it."""
    batches = spans.groupby("batch_id").agg(
        stream=("stream", "first"), device=("device", "first"), dispatched_s=("dispatched_s", "first"),
        start_s=("start_s", "min"), end_s=("end_s", "max"),
    )  # fmt: skip
    before = batches.sort_values("start_s").groupby(["device", "stream"])["end_s"].shift().fillna(-np.inf)
    return (np.minimum(before, batches["start_s"]) - batches["dispatched_s"]).clip(lower=0.0)


def _wasted_share(steps: pd.DataFrame) -> pd.Series:
    """Share of each row's drafts that came to nothing. A separate draft step learns it from the verify step of
    the same request that follows it."""
    lost = (steps["rejected"] + steps["discarded"]).astype(float)
    settled = steps["emitted"] > 0
    following = lost.where(settled & (steps["draft_length"] > 0)).groupby(steps["request"]).bfill()
    return (following / steps["draft_length"].where(steps["draft_length"] > 0)).fillna(0.0).clip(0.0, 1.0)
