"""The test set of the fidelity study is what a seeded draw gave, so that nobody chose its cells."""

from __future__ import annotations

import random
from typing import Any

from experiments.runner.config import CONFIGS, Experiment

SEED, CELLS = 20261127, 16
CAPACITY = {"pd": 8000, "pdv": 5500}  # tokens/s, about, with large limits


def drawn(seed: int) -> list[dict[str, Any]]:
    """Draw architectures, limits, draft lengths, loads and lengths."""
    rng = random.Random(seed)
    cells = []
    for number in range(1, CELLS + 1):
        base = rng.choice(["pd", "pd", "pdv", "pdv", "pdv", "baseline"])
        prefill, most = rng.choice([1, 2, 4]), rng.choice([8, 16, 32, 48, 64])
        cell: dict[str, Any] = {"base": base, "name": f"test {number}", "slots": 64}
        cell["draft_length"] = str(rng.choice([2, 3, 4, 6, 8]))
        if base != "baseline":
            steps = ["draft+verify"] if base == "pd" else ["draft", "verify"]
            cell["batch_limit"] = f"prefill={prefill}," + ",".join(f"{step}={most}" for step in steps)
        low = rng.choice([16, 64, 200])
        prompt = rng.choice([f"{low}-{low * 4}", f"{2 * low}~0.6[16-1000]"])
        output = rng.choice(["32-96", "128", "64-240"])
        cell["workload"] = {"prompt_tokens": prompt, "output_tokens": output}
        clients = round(2 ** rng.uniform(1, 6))
        share, bursts = rng.uniform(0.3, 0.8), rng.random() < 0.3
        if base != "baseline" and most >= 32 and rng.random() < 0.5:
            mean = {"32-96": 64, "128": 128, "64-240": 152}[output]
            cell["rates"] = [round(share * CAPACITY[base] / mean)]
            if bursts:
                cell["workload"] |= {"process": "gamma", "cv": 2.0}
        else:
            cell["concurrencies"] = [clients]
            if base == "baseline" or clients < 8:  # one after another, or a few at once: slow
                cell["workload"]["requests"] = 32 if base == "baseline" else 100
        cells.append(cell)
    return cells


def test_the_cells_of_the_test_set_are_those_of_the_draw() -> None:
    experiment = Experiment.load(CONFIGS / "fidelity-test.toml")
    assert experiment.architectures == drawn(SEED)
    assert drawn(SEED + 1) != drawn(SEED)
