"""Simulate the study of layouts from a profile, beside what was measured live. Needs no torch.

    python -m experiments.layouts_predicted results/h100/layouts.csv --profile results/h100/profile-llama2-7b

Same closed loops, lengths and numbers of requests as the live study; acceptance is the pair's dialled alpha. Nothing
is fitted to the live runs. Throughput is that of the whole loop, ramps included, on both sides. Layouts that the
profile did not measure (draft lengths, packed prompts) are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from calibrate.profile import Profile
from engines.errors import InputError
from engines.metrics import request_times
from engines.workload import FixedLength, make_workload
from experiments.study import layouts
from sim.acceptance import Independent
from sim.costs import CostModel
from sim.engine import simulate


def predicted(
    live: pd.DataFrame, profile: Profile, alpha: float = 0.8, prompt_tokens: int = 128, output_tokens: int = 128
) -> pd.DataFrame:
    """One row a layout and number of clients: live and simulated tokens/s and P95 latency (s), and their signed
    relative errors."""
    costs, rows = CostModel(profile), []
    for layout in layouts():
        for clients in layout.clients:
            cell = live[(live["layout"] == layout.name) & (live["clients"] == clients)]
            if cell.empty:
                continue
            count, measured = int(cell["requests"].iloc[0]), cell.iloc[0]
            lengths = FixedLength(prompt_tokens), FixedLength(output_tokens)
            workload = make_workload(count, *lengths, concurrency=clients, seed=0)
            try:
                run = simulate(layout.architecture, workload, costs, Independent(alpha))
            except InputError:  # beyond the profile
                continue
            rows.append({
                "study": layout.study, "layout": layout.name, "clients": clients,
                "live_tokens_per_s": measured["overall_tokens_per_s"],
                "simulated_tokens_per_s": run.finished["output_tokens"].sum() / run.duration_s,
                "live_latency_p95_s": measured["latency_p95_s"],
                "simulated_latency_p95_s": request_times(run)["latency_s"].quantile(0.95),
            })  # fmt: skip
    table = pd.DataFrame(rows)
    for quantity in ("tokens_per_s", "latency_p95_s"):
        table[f"{quantity}_error"] = table[f"simulated_{quantity}"] / table[f"live_{quantity}"] - 1
    return table


def read_study(path: Path) -> pd.DataFrame:
    """What experiments.layouts wrote. Raises InputError for anything else."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        why = str(error).strip()
        raise InputError("live", str(path), f"cannot be read as CSV ({why}); give a layouts.csv") from error
    missing = sorted({"layout", "clients", "overall_tokens_per_s", "latency_p95_s"} - set(table.columns))
    if missing:
        raise InputError("live", str(path), f"has no column {', '.join(missing)}; give a layouts.csv")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("live", type=Path, help="layouts.csv that experiments.layouts wrote")
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=0.8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    options = parser.parse_args()
    try:
        profile, study = Profile.load(options.profile), read_study(options.live)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    sizes = options.prompt_tokens, options.output_tokens
    table = predicted(study, profile, options.alpha, *sizes)
    print(table.drop(columns="study").round(3).to_string(index=False))
    for quantity in ("tokens_per_s", "latency_p95_s"):
        mean = table[f"{quantity}_error"].abs().mean()
        print(f"mean absolute error of {quantity}: {mean:.1%} over {len(table)} cells")
    if options.out:
        table.to_csv(options.out, index=False, float_format="%.6g")
    return 0


if __name__ == "__main__":
    sys.exit(main())
