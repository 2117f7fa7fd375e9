"""The study of layouts: every architecture live, over concurrency, limits, permits and what can be switched off.

    python -m experiments.runner.layouts --pair permutation:llama2-7b+tinyllama-1.1b:alpha=0.8 --device cuda

Each layout's engine is started once and serves closed loops of every concurrency; all outputs are checked. The
table goes to layouts.csv after every layout, so an interrupted study keeps what it has measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from engines.errors import InputError, require_positive
from engines.live.model.pairs import load_pair
from engines.live.serving.engine import LiveEngine
from engines.live.serving.utilisation import measure_ceilings
from engines.policy.architecture import Step
from engines.storage.files import replaced
from experiments.bench.engines import closed_loop_row, free_memory
from experiments.bench.exactness import expected_of
from experiments.bench.settings import BenchSettings, defaults_for
from experiments.program.ending import in_one_line
from experiments.program.outputs import check_output
from experiments.runner.preflight import check_fits, check_live
from experiments.runner.study import layouts


def measure(settings: BenchSettings, seconds: float, budget_s: float, folder: Path, only: str = "") -> pd.DataFrame:
    """One row a layout and number of clients. seconds: about how long each closed loop lasts; budget_s: no further
    layout is begun after it; only: measure the layouts whose name or study contains this. Raises InputError for what
    cannot be done, before any work."""
    chosen = [layout for layout in layouts() if only in f"{layout.study}: {layout.name}"]
    if not chosen:
        names = dict.fromkeys(layout.study for layout in layouts())
        raise InputError("only", only, f"no layout has this in its name or study; the studies are {', '.join(names)}")
    require_positive("seconds", seconds)
    require_positive("budget_s", budget_s)
    check_output("out", folder, ["layouts.csv"])
    check_live(settings.device, settings.pair)
    context = settings.prompt_tokens + settings.output_tokens
    for layout in chosen:
        check_fits(layout.architecture, settings.pair, device=settings.device, max_context=context)
    pair = load_pair(settings.pair, device=settings.device)
    ceilings, expected = measure_ceilings(pair.device), expected_of(settings.pair, pair)
    started, rows = time.perf_counter(), []
    for layout in chosen:
        if time.perf_counter() - started > budget_s:
            print(f"out of time before {layout.name}")
            break
        architecture = layout.architecture
        packed = max(lane.steps.get(Step.PREFILL, 0) for lane in architecture.lanes)
        began = time.perf_counter()
        tokens = packed * settings.prompt_tokens
        with LiveEngine(architecture, pair, context, prefill_tokens=tokens, reserve=0) as engine:
            for clients in layout.clients:
                row = closed_loop_row(engine, clients, settings, ceilings, expected, seconds, lambda what, part: None)
                rows.append({"study": layout.study, "layout": layout.name, "clients": clients, **row})
                print(_line(rows[-1]), flush=True)
        print(f"  {layout.name}: {time.perf_counter() - began:.0f} s", flush=True)
        with replaced(folder / "layouts.csv") as beside:
            pd.DataFrame(rows).to_csv(beside, index=False, float_format="%.6g")
        free_memory(pair.device)
    return pd.DataFrame(rows)


def _line(row: dict[str, Any]) -> str:
    busy = "/".join(f"{100 * row[f'running_at_least_{n}']:.0f}" for n in (1, 2, 3))
    times = f"TTFT {1e3 * row['ttft_p50_s']:7.1f}  TPOT {1e3 * row['tpot_p50_s']:6.2f} ms"
    times += f"  P95 {row['latency_p95_s']:6.2f} s"
    who = f"{row['layout'][:42]:42s} {row['clients']:3d} {row['tokens_per_s']:8.0f} tok/s"
    return f"{who}  {times}  busy {busy}  exact {row['equal']}/{row['checked']}"


@in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", default="embedded")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each closed loop, about")
    parser.add_argument("--budget-s", type=float, default=600.0)
    parser.add_argument("--only", default="", help="part of the name or study of the layouts to measure")
    parser.add_argument("--out", type=Path, default=Path("results/layouts"))
    options = parser.parse_args(arguments)
    settings = dataclasses.replace(
        defaults_for(options.device), pair=options.pair, device=options.device,
        prompt_tokens=options.prompt_tokens, output_tokens=options.output_tokens,
    )  # fmt: skip
    table = measure(settings, options.seconds, options.budget_s, options.out, options.only)
    return 0 if (table["equal"] == table["checked"]).all() else 1


if __name__ == "__main__":
    sys.exit(main())
