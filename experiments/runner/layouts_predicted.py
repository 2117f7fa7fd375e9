"""Simulate the study of layouts from a profile, beside what was measured live. Needs no torch.

    python -m experiments.runner.layouts_predicted results/h100/layouts.csv --profile results/h100/profile-llama2-7b

Same closed loops, prompts and numbers of requests as the live study, and, as a permutation pair's closed form says
which drafts are right, the same acceptance token by token. Nothing is fitted to the live runs. What is left to chance
are the durations, so each cell is simulated with several seeds: their mean, and the range of their throughput.
Throughput is that of the whole loop, ramps included, on both sides. Layouts that the profile did not measure (draft
lengths, packed prompts) are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.profile import Profile
from engines.errors import InputError, require_whole
from engines.pairs.permutation import PREFIX, PermutationSpec, expected_tape, parse_pair
from engines.record.metrics import batch_sizes, request_times
from engines.storage.files import replaced
from engines.storage.reading import require_file
from engines.workload.workload import FixedLength, Workload, make_workload, with_random_prompts
from experiments.program.ending import in_one_line
from experiments.program.outputs import check_file
from experiments.runner.study import layouts
from sim.acceptance import Tapes
from sim.costs import CostModel
from sim.engine import simulate

SEEDS = 5
MOST_STUDY_BYTES = 64 << 20  # of a table of a line a cell
REQUIRED = ("layout", "clients", "requests", "overall_tokens_per_s", "latency_p95_s", "batch_size.verify")


def predicted(
    live: pd.DataFrame, profile: Profile, prompt_tokens: int = 128, output_tokens: int = 128, seeds: int = SEEDS
) -> pd.DataFrame:
    """One row a layout and number of clients: live and simulated tokens/s, mean requests of a verify and P95 latency
    (s), and the signed relative errors of the first and last. Raises InputError unless the profile is of a
    permutation pair and covers a cell of the study."""
    require_whole("seeds", seeds, 1)
    costs, spec, rows = CostModel(profile), spec_of(profile), []
    lengths = FixedLength(prompt_tokens), FixedLength(output_tokens)
    left_out: list[InputError] = []
    for layout in layouts():
        for clients in layout.clients:
            cell = live[(live["layout"] == layout.name) & (live["clients"] == clients)]
            if cell.empty:
                continue
            count, measured = int(cell["requests"].iloc[0]), cell.iloc[0]
            workload = make_workload(count, *lengths, concurrency=clients, seed=0)
            workload = with_random_prompts(workload, spec.target_shape.vocabulary)
            acceptance = acceptance_of(spec, workload)
            try:
                runs = [simulate(layout.architecture, workload, costs, acceptance, seed=s) for s in range(seeds)]
            except InputError as error:  # beyond the profile
                left_out.append(error)
                continue
            throughputs = [run.finished["output_tokens"].sum() / run.duration_s for run in runs]
            rows.append({
                "study": layout.study, "layout": layout.name, "clients": clients,
                "live_tokens_per_s": measured["overall_tokens_per_s"],
                "simulated_tokens_per_s": np.mean(throughputs),
                "simulated_least": min(throughputs), "simulated_most": max(throughputs),
                "live_batch": measured["batch_size.verify"],
                "simulated_batch": np.mean([batch_sizes(run)["batch_size.verify"] for run in runs]),
                "live_latency_p95_s": measured["latency_p95_s"],
                "simulated_latency_p95_s": np.mean([request_times(run)["latency_s"].quantile(0.95) for run in runs]),
            })  # fmt: skip
    if not rows:
        first = f" ({left_out[0]})" if left_out else ""
        raise InputError("live", f"{len(live)} cells", f"the profile covers none of them{first}; give others")
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = len(left_out)
    for quantity in ("tokens_per_s", "latency_p95_s"):
        table[f"{quantity}_error"] = table[f"simulated_{quantity}"] / table[f"live_{quantity}"] - 1
    return table


def spec_of(profile: Profile) -> PermutationSpec:
    """The pair that was calibrated, whose outputs are known. Raises InputError for any other pair."""
    pair = str(profile.info["pair"])
    if not pair.startswith(PREFIX):
        raise InputError("profile pair", pair, "studies are of permutation pairs; calibrate the study's own pair")
    return parse_pair(pair)


def acceptance_of(spec: PermutationSpec, workload: Workload) -> Tapes:
    """Which drafts of each request will be right."""
    return Tapes({r.id: expected_tape(spec, r.prompt or (), r.max_tokens) for r in workload.requests})


def read_study(path: Path) -> pd.DataFrame:
    """What experiments.runner.layouts wrote. Raises InputError for anything else."""
    require_file("live", path, MOST_STUDY_BYTES)
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        why = str(error).strip()
        raise InputError("live", str(path), f"cannot be read as CSV ({why}); give a layouts.csv") from error
    missing = sorted(set(REQUIRED) - set(table.columns))
    if missing:
        raise InputError("live", str(path), f"has no column {', '.join(missing)}; give a layouts.csv")
    for column in REQUIRED[1:]:
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
        if len(wrong):
            field, value = f"{path} line {wrong[0] + 2} column {column}", table[column].iloc[wrong[0]]
            raise InputError(field, str(value), "needs a number above 0; give a layouts.csv as it was written")
    return table


@in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("live", type=Path, help="layouts.csv that experiments.runner.layouts wrote")
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    options = parser.parse_args(arguments)
    profile, study = Profile.load(options.profile), read_study(options.live)
    if options.out:
        check_file("out", options.out)
    table = predicted(study, profile, options.prompt_tokens, options.output_tokens)
    print(table.drop(columns="study").round(3).to_string(index=False))
    for quantity in ("tokens_per_s", "latency_p95_s"):
        mean = table[f"{quantity}_error"].abs().mean()
        print(f"mean absolute error of {quantity}: {mean:.1%} over {len(table)} cells")
    if table.attrs["left_out"]:
        print(f"{table.attrs['left_out']} more lie beyond the profile")
    if options.out:
        with replaced(options.out) as beside:
            table.to_csv(beside, index=False, float_format="%.6g")
    return 0


if __name__ == "__main__":
    sys.exit(main())
