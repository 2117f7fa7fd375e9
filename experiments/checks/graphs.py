"""Check that stages captured as CUDA graphs produce the same tokens as the same stages uncaptured.

Closed loops of random lengths are served twice, from graphs and uncaptured: by every architecture, with draft
lengths of 0 and 4, an adaptive one, and one that falls to 0 and rises again, with greedy, sampled and mixed decoding,
and with several numbers of clients.

- Greedy outputs that are known (the closed form of a permutation pair, or transformers' own in float32) must be
equal.
- Any other output may differ from its twin only at a tie. Graphs pad batches, and matrix products of another size
  round differently. So a plain transformers pass scores both tokens at the first difference (logit / temperature +
  noise): both must equal the best within rounding. In float32, hardly one token in a hundred thousand is such a tie.

The control shows how many differences are not due to graphs: it is the fraction of requests for which uncaptured runs
with different numbers of clients agree. On a CPU nothing is captured, but slots, padding and replays are the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from rich import box
from rich.table import Table

from engines.errors import InputError
from engines.live.model.pairs import Pair, load_pair
from engines.live.serving.engine import Handle, LiveEngine
from engines.live.serving.prompts import prompts_for
from engines.live.serving.serve import serve
from engines.pairs.permutation import PREFIX, margin, parse_pair
from engines.policy.architecture import Architecture, load_architecture
from engines.policy.draft_length import AdaptiveDraftLength, FixedDraftLength, LoadAdaptiveDraftLength
from engines.policy.request import Request
from engines.workload.workload import UniformLength, Workload, make_workload
from experiments.bench.engines import MOST_CARRIED, carries, for_clients, free_memory
from experiments.bench.exactness import Expected, expected_of, first_difference, is_tie
from experiments.program.progress import Report
from experiments.runner.preflight import check_fits

# The layers affect the logits as much as the closed form allows, so that a wrong context changes tokens.
PAIRS = {
    "cpu": "permutation:tiny+tiny-draft:scale=0.3",
    "cuda": "permutation:llama2-7b+tinyllama-1.1b:scale=1:layers=2",
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LONGEST_PROMPT, LONGEST_OUTPUT = 128, 16  # tokens; small batches split contexts above 128 over programs
DRAFT_LENGTHS = {
    "0": FixedDraftLength(0),
    "4": FixedDraftLength(4),
    "3 to 5": AdaptiveDraftLength(3, 5, 4, window=6, every=2, raise_above=0.6, lower_below=0.5),
    "0 or 3": LoadAdaptiveDraftLength(0, 3, 3, window=1, prior_drafts=1, margin=0.0, probe_every=2),  # times: Even
}
DECODINGS = {"greedy": (False,), "sampled": (True,), "mixed": (False, True)}  # which requests sample, in turn
CASE = ["dtype", "architecture", "draft_length", "decoding"]


class Even:
    """Step times with which a draft of any length takes as long as a verify.

    So drafting pays after a verification that accepted most drafts: k goes from 0 to the most and back again, and the
    draft model often has to catch up.
    """

    def draft_s(self, batch: int, k: int, context_tokens: float) -> float:
        return 1.0

    def verify_s(self, batch: int, k: int, context_tokens: float) -> float:
        return 1.0

    def host_s(self, batch: int, drafts: bool, verifies: bool) -> float:
        return 0.0

    def side_by_side(self, drafting: int, verifying: int, k: int, context_tokens: float) -> tuple[float, float]:
        return 1.0, 1.0

    def catch_up_s(self, tokens: int) -> float:
        return 0.0


class Load(NamedTuple):
    """A closed loop. decoding: a key of DECODINGS."""

    decoding: str
    clients: int
    workload: Workload


def layout(name: str, draft_length: str, clients: int) -> Architecture:
    """Return an architecture with a slot and, if requests are batched, a place in every batch for each client."""
    return for_clients(load_architecture(name), clients).replace(draft_length=DRAFT_LENGTHS[draft_length])


def make_loads(pair: Pair, clients: Sequence[int], temperature: float) -> list[Load]:
    """Make a load per decoding and number of clients. Request i is the same for all numbers of clients."""
    lengths = UniformLength(1, LONGEST_PROMPT), UniformLength(1, LONGEST_OUTPUT)
    loads = []
    for decoding, samples in DECODINGS.items():
        for n in clients:
            workload = prompts_for(pair, make_workload(6 + 5 * n // 4, *lengths, concurrency=n), seed=0)
            requests = tuple(
                dataclasses.replace(request, temperature=temperature * samples[request.id % len(samples)])
                for request in workload.requests
            )
            loads.append(Load(decoding, n, dataclasses.replace(workload, requests=requests)))
    return loads


def even_temperature(pair_name: str) -> float:
    """Return a temperature at which the top token of a permutation pair has a probability of about one half.

    At 0.8 it has nearly all. The other logits are standard normal, so their total weight is about their number.
    """
    if not pair_name.startswith(PREFIX):
        return 0.8
    spec = parse_pair(pair_name)
    weight = math.log(spec.target_shape.vocabulary)
    return margin(spec.target_shape, spec.layer_scale) * math.sqrt(4 * weight) / weight


class Served(NamedTuple):
    """Output tokens by request ID, as far as each request came, and the draft lengths that occurred, ascending."""

    outputs: dict[int, list[int]]
    drafted: list[int]


def serve_all(architecture: Architecture, pair: Pair, loads: Sequence[Load], graphs: bool) -> list[Served]:
    """Serve the loads one after another with one engine."""
    free_memory(pair.device)  # of the previous engine
    served = []
    context = LONGEST_PROMPT + LONGEST_OUTPUT
    with LiveEngine(architecture, pair, context, graphs=graphs, sampling=True, times=Even()) as engine:
        for load in loads:
            handles: list[Handle] = []
            run = serve(engine, load.workload, on_end=handles.append, complete_tapes=False)
            outputs = {handle.request.id: handle.tokens for handle in handles}
            served.append(Served(outputs, sorted(set(run.steps["draft_length"]) - {0})))
    return served


def compare(
    pair: Pair, expected: Expected, requests: Sequence[Request], graphs: Served, eager: Served
) -> dict[str, Any]:
    """Count the outputs that are equal, differ at a tie, or are wrong.

    known: number of outputs whose tokens are known. first: describes the first wrong one.
    """
    found: dict[str, Any] = {"requests": len(requests), "equal": 0, "ties": 0, "wrong": 0, "known": 0, "first": ""}
    for request in requests:
        count, a, b = request.max_tokens, graphs.outputs[request.id], eager.outputs[request.id]
        must_be_known = expected.exact and request.temperature == 0
        right = expected.tokens(request.prompt or (), count) if must_be_known else None
        found["known"] += right is not None
        twins = [(a, b)] if right is None else [(a, right), (b, right)]
        differences = [first_difference(*two, count) for two in twins]
        place = min((i for i in differences if i is not None), default=None)
        if place is None:
            found["equal"] += 1
        elif right is None and place < min(len(a), len(b)) and is_tie(pair, request, a[:place], (a[place], b[place])):
            found["ties"] += 1
        else:
            found["wrong"] += 1
            found["first"] = found["first"] or f"request {request.id}, output token {place}"
    return found


def check(
    pair: Pair, expected: Expected, name: str, draft_length: str, loads: Sequence[Load]
) -> Iterator[dict[str, Any]]:
    """Yield one row per load of an architecture."""
    architecture = layout(name, draft_length, max(load.clients for load in loads))
    graphs, eager = (serve_all(architecture, pair, loads, captured) for captured in (True, False))
    for load, replayed, once in zip(loads, graphs, eager, strict=True):
        others = [e for x, e in zip(loads, eager, strict=True) if x.decoding == load.decoding and e is not once]
        again = others[-1].outputs if others else {}
        both = once.outputs.keys() & again.keys()
        case = (str(pair.dtype).removeprefix("torch."), architecture.name, draft_length, load.decoding)
        yield {
            **dict(zip(CASE, case, strict=True)), "clients": load.clients,
            "drafted": " ".join(map(str, replayed.drafted)),
            **compare(pair, expected, load.workload.requests, replayed, once),
            "control_requests": len(both), "control_equal": sum(once.outputs[i] == again[i] for i in both),
        }  # fmt: skip


def report(rows: pd.DataFrame) -> Table:
    """Return a table with one row per case, for all numbers of clients together."""
    table = Table(
        box=box.SIMPLE_HEAD, caption="known: compared with known tokens; control: uncaptured runs that agree"
    )
    for heading in ("", "architecture", "k", "decoding"):
        table.add_column(heading)
    for heading in ("requests", "equal", "ties", "wrong", "known", "control"):
        table.add_column(heading, justify="right")
    for case, group in rows.groupby(CASE, sort=False):
        total = group.sum(numeric_only=True)
        control = f"{total.control_equal / total.control_requests:.0%}" if total.control_requests else "-"
        counts = (total.requests, total.equal, total.ties, total.wrong, total.known)
        table.add_row(*map(str, case), *(f"{count:g}" for count in counts), control)
    return table


def check_all(
    pair_name: str, device: str, dtypes: Sequence[str], names: Sequence[str], clients: Sequence[int], progress: Report
) -> pd.DataFrame:
    """Return one row per case and number of clients. Raises InputError before any work."""
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise InputError("dtype", dtype, f"use {' or '.join(DTYPES)}, or both, separated by a comma")
    few = [n for n in clients if n <= max(MOST_CARRIED, clients[0])]  # further clients would only wait
    fitting = {name: few if carries(load_architecture(name)) else clients for name in names}
    for name, draft_length in itertools.product(names, DRAFT_LENGTHS):
        largest = layout(name, draft_length, fitting[name][-1])
        check_fits(largest, pair_name, device=device, max_context=LONGEST_PROMPT + LONGEST_OUTPUT)
    cases, rows = list(itertools.product(names, DRAFT_LENGTHS)), list[dict[str, Any]]()
    for i, dtype in enumerate(dtypes):
        pair = load_pair(pair_name, device=device, dtype=DTYPES[dtype])
        expected, loads = expected_of(pair_name, pair), make_loads(pair, clients, even_temperature(pair_name))
        for j, (name, draft_length) in enumerate(cases):
            progress(i * len(cases) + j, len(dtypes) * len(cases))
            chosen = [load for load in loads if load.clients in fitting[name]]
            rows += check(pair, expected, name, draft_length, chosen)
    return pd.DataFrame(rows)
