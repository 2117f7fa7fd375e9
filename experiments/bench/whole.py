"""Run a whole bench, part by part."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import tomli_w
import torch

from calibrate.stage_costs import Progress
from engines.errors import InputError
from engines.live.model.kv_cache import positions_of
from engines.live.model.pairs import default_dtype, find_device, load_configs, load_pair
from engines.live.serving.serve import device_name, library_versions
from engines.policy.architecture import PD, Step
from engines.policy.draft_length import FixedDraftLength
from engines.storage.files import replaced
from experiments.bench.caches import CacheFindings, check_caches
from experiments.bench.engines import candidates, free_memory, measure_engines
from experiments.bench.exactness import expected_of
from experiments.bench.peers import measure_peers
from experiments.bench.settings import BenchSettings
from experiments.bench.stages import find_ceilings, measure_stages
from experiments.program.outputs import save_table
from experiments.program.progress import bar, console
from experiments.program.provenance import made_by
from experiments.runner import preflight as fitting

T = TypeVar("T")


@dataclass
class BenchResult:
    """All measurements so far. parts: seconds per part. info: the other contents of bench.toml."""

    info: dict[str, Any]
    stages: pd.DataFrame = field(default_factory=pd.DataFrame)
    engines: pd.DataFrame = field(default_factory=pd.DataFrame)
    peers: pd.DataFrame = field(default_factory=pd.DataFrame)
    caches: list[CacheFindings] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """One message per failed check."""
        found = []
        for row in self.engines.to_dict("records"):
            where = f"{row['architecture']} ({row['limits']} limits), {row['clients']} clients"
            if row["finished"] < row["requests"]:
                found.append(f"{where}: {row['finished']} of {row['requests']} requests finished")
            if self.info["must_be_exact"] and (row["equal"] < row["checked"] or not row["checked"]):
                difference = f", first at {row['first_difference']}" if row["first_difference"] else ""
                found.append(f"{where}: {row['equal']} of {row['checked']} outputs are exact{difference}")
        for findings in self.caches:
            if not findings.ok:
                found.append(f"{findings.architecture}: {findings.failure}")
        return found

    def save(self, folder: Path) -> None:
        """Write bench.toml and the tables that are not empty."""
        caches = [{**asdict(findings), "ok": findings.ok} for findings in self.caches]
        text = {**self.info, "seconds": self.parts, "failures": self.failures, "caches": caches}
        with replaced(folder / "bench.toml") as beside:
            beside.write_text(tomli_w.dumps(text), encoding="utf-8")
        for name in ("stages", "engines", "peers"):
            table = getattr(self, name)
            if not table.empty:
                save_table(table, folder / f"{name}.csv")


def check_fits(settings: BenchSettings) -> None:
    """Raise InputError, before anything is loaded, if the settings exceed the pair or the device."""
    positions = positions_of(*load_configs(settings.pair))
    if settings.longest > positions:
        remedy = f"the pair supports {positions} positions, including drafts; use shorter ones"
        raise InputError("context, prompts, prompt_tokens + output_tokens", settings.longest, remedy)
    alone = PD.with_batch_limits({Step.DRAFT_VERIFY: max(settings.batches)}).replace(
        slots=max(settings.batches), draft_length=FixedDraftLength(settings.draft_length)
    )
    needs = [(c.architecture, settings.prompt_tokens + settings.output_tokens) for c in candidates(settings)]
    for architecture, context in [*needs, (alone, max(settings.context, *settings.prompts) + 1)]:
        fitting.check_fits(architecture, settings.pair, device=settings.device, max_context=context)


def run_bench(settings: BenchSettings, out: Path, command: str) -> tuple[BenchResult, Path]:
    """Measure everything. Returns the result and its folder, a subfolder of `out`.

    Each part is saved when it is finished. Raises InputError if the settings exceed the pair or the device.
    """
    check_fits(settings)
    device = find_device(settings.device)
    result = BenchResult(_info(settings, device, command))
    folder = out / _folder_name(result.info["device"], settings.pair)

    def part(name: str, work: Callable[[Progress], T]) -> T:
        started = time.perf_counter()
        with bar(name) as progress:
            made = work(progress.part)
        free_memory(device)
        result.parts[name] = time.perf_counter() - started
        console.print(f"{name}: {result.parts[name]:.1f} s", highlight=False)
        return made

    result.caches = part("caches", lambda report: check_caches(settings, report))
    pair = part("loading", lambda report: load_pair(settings.pair, device=device))
    expected = expected_of(settings.pair, pair)
    result.info |= {"expected": expected.what, "must_be_exact": expected.exact}
    ceilings = part("ceilings", lambda report: find_ceilings(pair))
    result.info["ceilings"] = asdict(ceilings)
    result.stages = part("stages", lambda report: measure_stages(pair, settings, ceilings, report))
    result.save(folder)
    result.engines = part("engines", lambda report: measure_engines(pair, settings, ceilings, expected, report))
    result.save(folder)
    if settings.peers:
        result.peers = part("peers", lambda report: measure_peers(pair, settings, expected, report))
        result.save(folder)
    return result, folder


def _info(settings: BenchSettings, device: torch.device, command: str) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "pair": settings.pair,
        "dtype": str(default_dtype(device)).removeprefix("torch."),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **made_by(),
        "command": command,
        "versions": library_versions(),
        "settings": asdict(settings),
    }


def _folder_name(device: str, pair: str) -> str:
    """Return <device>-<pair> as a valid folder name."""
    text = f"{device}-{pair.rstrip('/').rpartition('/')[2]}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
