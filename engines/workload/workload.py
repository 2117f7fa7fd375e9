"""Workloads: which requests an engine is given, how long they are, and when they arrive.

Random numbers are keyed by (seed, request id, purpose). Each purpose has its own stream of uniform numbers, of which
request i takes the i-th. Lengths and gaps are quantile functions of these numbers, so adding requests never changes
earlier ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from engines.errors import InputError, require_positive, require_whole
from engines.policy.request import LATEST_S, Request, check_moment, check_temperature
from engines.record.run import Run
from engines.workload.corpus import held_out_prompt
from engines.workload.lengths import FixedLength, Lengths, ListedLength, LogNormalLength, UniformLength

MOST_REQUESTS = 10_000_000  # per workload; also the limit on its clients

__all__ = [
    "PROCESSES", "FixedLength", "Lengths", "ListedLength", "LogNormalLength", "UniformLength", "Workload",
    "lengths_of", "make_workload", "replay", "with_prompts", "with_sampling",
]  # fmt: skip

PROCESSES = ("poisson", "gamma", "fixed")
LEAST_CV, MOST_CV = 1e-3, 100.0  # below, gaps are practically fixed; above, nearly all are 0


@dataclass(frozen=True)
class Workload:
    """Requests in submission order.

    Open loop (concurrency None): every request has an arrival_s. Closed loop: `concurrency` clients submit the first
    requests at time 0, in order. When a request ends, whatever its status, its client submits the next unsent
    request i after think_s[i] seconds (at once if think_s is empty).
    info: how the workload was made, as plain values for run.toml.

    Raises InputError for requests that no engine can serve (Request.check), and for arrivals or think times so large
    that a clock no longer resolves a microsecond.
    """

    requests: tuple[Request, ...]
    concurrency: int | None = None
    think_s: tuple[float, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.requests:
            raise InputError("requests", (), "give the workload at least one request")
        for request in self.requests:
            request.check()
        if len({request.id for request in self.requests}) < len(self.requests):
            raise InputError("requests", f"{len(self.requests)} requests", "give every request a different id")
        if self.concurrency is not None:
            require_whole("concurrency", self.concurrency, 1, MOST_REQUESTS)
            if self.think_s and len(self.think_s) != len(self.requests):
                raise InputError("think_s", f"{len(self.think_s)} values", "give one think time per request, or none")
            for seconds in self.think_s:
                check_moment("think_s", seconds)
            check_moment("think_s of a client, in all", sum(self.think_s) / self.concurrency)
            return
        if self.think_s:
            raise InputError("think_s", f"{len(self.think_s)} values", "only the clients of a closed loop think")
        arrivals = [request.arrival_s for request in self.requests]
        known = [arrival for arrival in arrivals if arrival is not None]
        if len(known) < len(arrivals):
            raise InputError("arrival_s", None, "an open loop needs one for every request; or give a concurrency")
        if known != sorted(known):
            raise InputError("arrival_s", "out of order", "sort the requests of an open loop by arrival")


def lengths_of(workload: Workload) -> tuple[ListedLength, ListedLength]:
    """Return the prompt and output lengths of a workload (such as a trace), for another one with the same pairs."""
    requests = workload.requests
    return (
        ListedLength(tuple(request.prompt_tokens for request in requests)),
        ListedLength(tuple(request.max_tokens for request in requests)),
    )


def make_workload(
    count: int,
    prompt_lengths: Lengths,
    output_lengths: Lengths,
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    process: str | None = None,
    cv: float | None = None,
    rate_steps: Sequence[float] = (),
    mean_think_s: float = 0.0,
    seed: int = 0,
    temperature: float = 0.0,
    ignore_eos: bool = True,
) -> Workload:
    """Draw `count` requests, without prompts.

    Give either `concurrency` (closed loop, with exponential think times of mean `mean_think_s` seconds) or `rate`
    (open loop, requests per second, the first at 0).
    process, for an open loop only: "poisson" (default), "gamma" or "fixed" gaps.
    cv, for "gamma" only: coefficient of variation of the gaps, LEAST_CV to MOST_CV (default 1; above 1 is burstier
    than Poisson).
    rate_steps, for an open loop only: factors on the rate. Each holds for an equal share of the requests, in order:
    (1, 3) triples the rate half way.
    Raises InputError.
    """
    require_whole("count", count, 1, MOST_REQUESTS)
    require_whole("seed", seed, 0)
    if (concurrency is None) == (rate is None):
        raise InputError("concurrency, rate", (concurrency, rate), "give exactly one of them")
    check_temperature(temperature)
    prompts = prompt_lengths.tokens(_uniform(seed, _Purpose.PROMPT_LENGTH, count)).tolist()
    outputs = output_lengths.tokens(_uniform(seed, _Purpose.OUTPUT_LENGTH, count)).tolist()
    info = {
        "kind": "synthetic", "count": count, "seed": seed, "temperature": temperature, "ignore_eos": ignore_eos,
        "prompt_lengths": prompt_lengths.describe(), "output_lengths": output_lengths.describe(),
    }  # fmt: skip
    arrivals: list[float | None] = [None] * count
    think: tuple[float, ...] = ()
    if concurrency is not None:
        require_whole("concurrency", concurrency, 1, MOST_REQUESTS)
        for name, value in (("process", process), ("cv", cv), ("rate_steps", list(rate_steps) or None)):
            if value is not None:
                raise InputError(name, value, "this is for an open loop (with a rate) only; leave it out")
        think = _think_times(_uniform(seed, _Purpose.THINK, count), mean_think_s, concurrency)
        info |= {"concurrency": concurrency, "mean_think_s": mean_think_s}
    elif rate is not None:
        if mean_think_s:
            raise InputError("mean_think_s", mean_think_s, "only the clients of a closed loop think")
        process, cv = process or "poisson", 1.0 if cv is None else cv
        arrivals = _arrivals(_uniform(seed, _Purpose.ARRIVAL, count), rate, process, cv, rate_steps)
        info |= {"rate": rate, "process": process, "cv": {"poisson": 1.0, "gamma": cv, "fixed": 0.0}[process]}
        info |= {"rate_steps": list(rate_steps)} if rate_steps else {}
    requests = tuple(
        Request(i, prompt, output, arrival, temperature=temperature, seed=seed, ignore_eos=ignore_eos)
        for i, (prompt, output, arrival) in enumerate(zip(prompts, outputs, arrivals, strict=True))
    )
    return Workload(requests, concurrency, think, info)


def with_sampling(workload: Workload, temperature: float = 0.0, seed: int = 0) -> Workload:
    """Return the workload (such as a trace) with every request at this temperature and seed.

    Its prompts are keyed by this seed too. Raises InputError.
    """
    check_temperature(temperature)
    require_whole("seed", seed, 0)
    requests = tuple(
        dataclasses.replace(request, temperature=temperature, seed=seed) for request in workload.requests
    )
    info = {**workload.info, "temperature": temperature, "seed": seed}
    return dataclasses.replace(workload, requests=requests, info=info)


def with_prompts(workload: Workload, encode: Callable[[str], Sequence[int]], seed: int = 0) -> Workload:
    """Return the workload with real text as prompts: held-out standard library source, keyed by (seed, request id).

    encode: turns text into token ids. Each prompt is cut to its request's prompt_tokens. Raises InputError if no
    held-out file is long enough.
    """
    requests = tuple(
        dataclasses.replace(request, prompt=_prompt(request, encode, seed)) for request in workload.requests
    )
    return dataclasses.replace(workload, requests=requests, info={**workload.info, "prompt_seed": seed})


def with_random_prompts(workload: Workload, vocabulary: int, seed: int = 0) -> Workload:
    """Return the workload with prompts of random token ids below `vocabulary`.

    Adding requests at the end does not change the prompts of earlier ones.
    """
    prompts = random_prompts(workload, vocabulary, seed)
    requests = tuple(
        dataclasses.replace(request, prompt=tuple(prompt.tolist()))
        for request, prompt in zip(workload.requests, prompts, strict=True)
    )
    return dataclasses.replace(workload, requests=requests, info={**workload.info, "prompt_seed": seed})


def random_prompts(workload: Workload, vocabulary: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the prompt of each request that `with_random_prompts` gives it, [prompt_tokens] int64."""
    rng = np.random.default_rng(seed)
    for request in workload.requests:
        yield rng.integers(0, vocabulary, request.prompt_tokens)


def _prompt(request: Request, encode: Callable[[str], Sequence[int]], seed: int) -> tuple[int, ...]:
    size = request.prompt_tokens  # bytes: one per token at first, doubled until there are enough tokens
    while True:
        try:
            text = held_out_prompt(seed, request.id, size).decode()
        except ValueError as error:
            remedy = f"no held-out file has a prompt of {size} bytes; use shorter prompts"
            raise InputError(f"request {request.id}.prompt_tokens", request.prompt_tokens, remedy) from error
        tokens = encode(text)
        if len(tokens) >= request.prompt_tokens:
            return tuple(tokens[: request.prompt_tokens])
        size *= 2


def replay(run: Run) -> Workload:
    """Return a recorded run's requests as an open loop, with the recorded ids, arrivals, prompt lengths and limits.

    This includes requests that were cancelled, failed or rejected. There are no prompts: `with_prompts` with the
    recorded prompt seed makes the same ones again.
    """
    made = run.info.get("workload", {})
    rows = run.requests.sort_values(["arrival_s", "request"])
    columns = (rows["request"], rows["prompt_tokens"], rows["max_tokens"], rows["arrival_s"])
    requests = tuple(
        Request(
            int(id_), int(prompt), int(limit), float(arrival),
            temperature=made.get("temperature", 0.0), seed=made.get("seed", 0),
            ignore_eos=made.get("ignore_eos", True),
        )
        for id_, prompt, limit, arrival in zip(*columns, strict=True)
    )  # fmt: skip
    return Workload(requests, info={**made, "kind": "replay", "count": len(requests), "of": run.name})


class _Purpose(IntEnum):
    """What a stream of random numbers is used for."""

    PROMPT_LENGTH = 0
    OUTPUT_LENGTH = 1
    ARRIVAL = 2
    THINK = 3


def _uniform(seed: int, purpose: _Purpose, count: int) -> np.ndarray:
    return np.random.default_rng([seed, purpose]).random(count)


def _arrivals(
    uniform: np.ndarray, rate: float, process: str, cv: float, rate_steps: Sequence[float]
) -> list[float | None]:
    """Return the arrivals in seconds after the start, the first at 0."""
    require_positive("rate", rate)
    if rate * LATEST_S < 1:
        raise InputError("rate", rate, f"use at least {1 / LATEST_S:g} requests per second")
    gaps = _gaps(uniform, rate, process, cv)
    if rate_steps:
        for factor in rate_steps:
            require_positive("rate_steps", factor)
        gaps /= np.asarray(rate_steps, float)[np.arange(len(gaps)) * len(rate_steps) // len(gaps)]
    gaps[0] = 0.0
    arrivals = np.cumsum(gaps)
    if arrivals[-1] > LATEST_S:
        remedy = f"the last of {len(arrivals)} requests would arrive after {arrivals[-1]:.3g} s, and the limit is"
        raise InputError("rate", rate, f"{remedy} {LATEST_S:g} s; use a higher rate or fewer requests")
    return arrivals.tolist()


def _gaps(uniform: np.ndarray, rate: float, process: str, cv: float) -> np.ndarray:
    """Return the seconds before each arrival, one gap per request."""
    if process not in PROCESSES:
        raise InputError("process", process, f"use {', '.join(PROCESSES)}")
    if process != "gamma" and cv != 1.0:
        raise InputError("cv", cv, 'this is for process = "gamma" only; leave it out')
    if process == "fixed":
        return np.full(len(uniform), 1 / rate)
    if process == "poisson":
        return -np.log1p(-uniform) / rate
    if isinstance(cv, bool) or not isinstance(cv, int | float) or not LEAST_CV <= cv <= MOST_CV:
        raise InputError("cv", cv, f"use a number from {LEAST_CV:g} to {MOST_CV:g}")
    shape = 1 / cv**2
    from scipy.special import gammaincinv  # takes 0.1 s to import

    return gammaincinv(shape, uniform) / (shape * rate)


def _think_times(uniform: np.ndarray, mean_s: float, concurrency: int) -> tuple[float, ...]:
    """Return exponential think times in seconds, with 0 before each client's first request."""
    check_moment("mean_think_s", mean_s)
    if mean_s == 0:
        return ()
    pauses = -mean_s * np.log1p(-uniform)
    pauses[:concurrency] = 0.0
    return tuple(pauses.tolist())
