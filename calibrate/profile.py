"""A profile: what one (device, model pair) was measured to do. Needs no torch, neither to read nor to write.

A folder holds `profile.toml` (what was measured, where, when, with which versions), three tidy CSV tables that a
person can read and git can diff (`stage_costs`, `contention`, `acceptance`) and, where a live run left them, the
acceptance tapes in `tapes.parquet`. Durations are milliseconds.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w

from calibrate.contention import LEAST_RATE
from engines.architecture import Segment, Step
from engines.errors import InputError

SCHEMA_VERSION = 2
QUANTILES = {"p05_ms": 0.05, "p25_ms": 0.25, "p50_ms": 0.5, "p75_ms": 0.75, "p95_ms": 0.95}
STAGE_COST_COLUMNS = [
    "segment", "batch", "draft_length", "tokens", "context_tokens", "kernels", "repeats", *QUANTILES, "mean_ms",
]  # fmt: skip
CONTENTION_COLUMNS = [
    "group", "segment", "batch", "draft_length", "tokens", "context_tokens", "solo_ms", "kernels", "rate",
]  # fmt: skip
HOST_COLUMNS = ["step", "woken_ms", "going_on_ms"]
ACCEPTANCE_COLUMNS = ["position", "rate", "requests", "alpha_mean", "alpha_sd"]
COLUMNS = {
    "stage_costs": STAGE_COST_COLUMNS,
    "host_times": HOST_COLUMNS,
    "contention": CONTENTION_COLUMNS,
    "acceptance": ACCEPTANCE_COLUMNS,
}
KEY = ["segment", "batch", "draft_length", "tokens", "context_tokens"]
TEXT = {"group", "segment", "step"}
KINDS: dict[str, list[str]] = {"segment": list(Segment), "step": list(Step)}
POSITIVE = {"batch", "tokens", "kernels", "repeats", "mean_ms", "solo_ms", "position", "requests"}
HIGHEST_RATE = 1.05  # a rate against running alone can be measured a little above 1
SHORTEST_MS, LONGEST_MS = 1e-6, 1e9  # of a duration that can have been measured: a nanosecond, and eleven days
MOST_KERNELS = 1e9
LIMITS = {
    ("contention", "rate"): HIGHEST_RATE,
    **{("acceptance", c): 1.0 for c in ("rate", "alpha_mean", "alpha_sd")},
    **{("stage_costs", c): LONGEST_MS for c in (*QUANTILES, "mean_ms")},
    **{("host_times", c): LONGEST_MS for c in ("woken_ms", "going_on_ms")},
    ("contention", "solo_ms"): LONGEST_MS,
    **{(table, "kernels"): MOST_KERNELS for table in ("stage_costs", "contention")},
}
LEAST = {
    ("contention", "rate"): LEAST_RATE,
    ("contention", "solo_ms"): SHORTEST_MS,
    **{("stage_costs", c): SHORTEST_MS for c in (*QUANTILES, "mean_ms")},
}
INFO_TEXT = ("device", "pair", "dtype", "date", "command")
INFO_COUNTS = ("max_context", "draft_length")
AGAIN = "run `pdv calibrate` again"
FLOAT_DIGITS = 6


@dataclass
class Profile:
    """What was measured, checked when it is made. Raises InputError naming table, column, row and remedy.

    info: device, pair, dtype, date, command (text), versions (a table), max_context (tokens), draft_length (k at
    which acceptance was measured) and, where batches are padded to fixed sizes, batch_buckets.
    stage_costs: one row a measured point. prefill_draft and prefill_target: batch prompts packed, tokens = all
    their tokens, draft_length and context_tokens 0. draft: its k steps together, tokens = batch * k; verify:
    tokens = batch * (k + 1); context_tokens = mean tokens a request has in the cache. kernels: kernels of one
    execution.
    host_times: one row a step, in the order of Step; time that a work spends outside the device if its worker had to
    be woken for it, and if the worker goes on from the work before.
    contention: one row a stream of a group that ran together; solo_ms = its mean time alone, rate = its
    speed while all were on the device against that.
    acceptance: rate at position i = unconditional probability that the first i drafts are all accepted; requests,
    alpha_mean and alpha_sd (spread over requests of the conditional acceptance) are the same on every row.
    tapes: request id -> int8 array as in engines.run.Run.
    """

    info: dict[str, Any]
    stage_costs: pd.DataFrame
    host_times: pd.DataFrame
    contention: pd.DataFrame
    acceptance: pd.DataFrame
    tapes: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_info(self.info, "profile.toml")
        for name in COLUMNS:
            checked = _check_table(name, getattr(self, name), f"{name}.csv")
            setattr(self, name, checked)
        _check_meaning(self.stage_costs, self.host_times, self.acceptance)
        self.host_times = self.host_times.set_index("step").loc[list(Step)].reset_index()

    @property
    def batch_buckets(self) -> tuple[int, ...]:
        """Batch sizes that draft and verify are padded to; empty where they are not padded."""
        return tuple(self.info.get("batch_buckets", ()))

    def save(self, folder: Path | str) -> Path:
        """Write the folder. Floats keep 6 significant digits; `rows` in profile.toml tells a truncated table."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = {name: len(getattr(self, name)) for name in COLUMNS}
        (folder / "profile.toml").write_text(
            tomli_w.dumps({"schema_version": SCHEMA_VERSION, **self.info, "rows": rows})
        )
        for name in COLUMNS:
            getattr(self, name).to_csv(
                folder / f"{name}.csv", index=False, float_format=f"%.{FLOAT_DIGITS}g", lineterminator="\n"
            )
        tapes = folder / "tapes.parquet"
        if self.tapes:
            bits = [tape.tolist() for tape in self.tapes.values()]
            pd.DataFrame({"request": list(self.tapes), "bits": bits}).to_parquet(tapes, index=False)
        else:
            tapes.unlink(missing_ok=True)
        return folder

    @staticmethod
    def load(folder: Path | str) -> Profile:
        """Read a folder. Raises InputError when anything in it is missing, damaged or of another version."""
        folder = Path(folder)
        version, info = _read_info(folder / "profile.toml")
        rows = info.pop("rows", {})
        if not isinstance(rows, dict):
            raise InputError(f"{folder}/profile.toml rows", rows, f"needs a table of row counts; {AGAIN}")
        tables: dict[str, pd.DataFrame] = {}
        for name in COLUMNS:
            path = folder / f"{name}.csv"
            if name == "host_times" and version == 1:
                tables[name] = _first_host_times(tables["stage_costs"], f"{folder}/stage_costs.csv")
                continue
            tables[name] = _read_csv(path)
            if len(tables[name]) != rows.get(name, len(tables[name])):
                raise InputError(
                    str(path), f"{len(tables[name])} rows",
                    f"profile.toml says {rows[name]}: truncated; {AGAIN} (if you meant it, correct `rows`)",
                )  # fmt: skip
        tapes = _read_tapes(folder / "tapes.parquet")
        try:
            return Profile(info, **tables, tapes=tapes)
        except InputError as error:
            raise InputError(f"{folder}/{error.field}", error.value, error.remedy) from error


# --- reading ------------------------------------------------------------------------------------------------


def _read_info(path: Path) -> tuple[int, dict[str, Any]]:
    """The schema version, and what else is there."""
    if not path.is_file():
        raise InputError("profile", str(path.parent), "no profile.toml there; give the folder `pdv calibrate` wrote")
    try:
        info = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("profile", str(path), f"not valid TOML ({error}); {AGAIN}") from error
    version = info.pop("schema_version", None)
    if type(version) is not int or version not in (1, SCHEMA_VERSION):
        raise InputError(f"{path} schema_version", version, f"this version reads 1 and {SCHEMA_VERSION}; {AGAIN}")
    return version, info


def _first_host_times(costs: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table of a profile of version 1, which told segments apart, but not what a worker did before: the host time
    of a work was its slowest segment's."""
    for column in ("segment", "host_ms"):
        if column not in costs:
            raise InputError(where, ", ".join(map(str, costs.columns)), f"column {column} is missing; {AGAIN}")
    host_ms = pd.to_numeric(costs["host_ms"], errors="coerce").astype(float)
    _refuse(where, costs, "host_ms", ~np.isfinite(host_ms) | (host_ms < 0), "needs a number of at least 0")
    known = host_ms.groupby(costs["segment"]).max().to_dict()
    times = [max((known[segment] for segment in step.segments if segment in known), default=0.0) for step in Step]
    return pd.DataFrame({"step": list(Step), "woken_ms": times, "going_on_ms": times})


def _read_csv(path: Path) -> pd.DataFrame:
    """Every cell as text, so that a bad one can be named."""
    if not path.is_file():
        raise InputError("profile", str(path), f"the table is missing; {AGAIN}")
    try:
        text = path.read_text(encoding="utf-8")
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError("profile", str(path), f"not a readable CSV table ({error}); {AGAIN}") from error
    if not text.endswith("\n"):
        raise InputError("profile", str(path), f"the last line is cut off: the table is truncated; {AGAIN}")
    return table


def _read_tapes(path: Path) -> dict[int, np.ndarray]:
    if not path.exists():
        return {}
    try:
        table = pd.read_parquet(path)
        pairs = zip(table["request"], table["bits"], strict=True)
        return {int(request): np.asarray(bits, dtype=np.int8) for request, bits in pairs}
    except (OSError, ValueError, KeyError) as error:
        raise InputError("profile", str(path), f"damaged ({type(error).__name__}); {AGAIN}") from error


# --- checking -----------------------------------------------------------------------------------------------


def _check_info(info: dict[str, Any], where: str) -> None:
    for name in INFO_TEXT:
        if not info.get(name):
            raise InputError(f"{where} {name}", info.get(name), f"it is missing; {AGAIN}")
    for name in INFO_COUNTS:
        value = info.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{where} {name}", value, f"needs a whole number of at least 1; {AGAIN}")
    if not isinstance(info.get("versions"), dict):
        raise InputError(f"{where} versions", info.get("versions"), f"needs a table of library versions; {AGAIN}")
    buckets = info.get("batch_buckets", [])
    if list(buckets) != sorted(set(buckets)) or any(not isinstance(b, int) or b < 1 for b in buckets):
        raise InputError(f"{where} batch_buckets", buckets, f"needs rising whole numbers; {AGAIN}")


def _check_table(name: str, table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with its columns in order and every number a number."""
    missing = [column for column in COLUMNS[name] if column not in table]
    if missing:
        raise InputError(where, ", ".join(map(str, table.columns)), f"column {missing[0]} is missing; {AGAIN}")
    if table.empty:
        raise InputError(where, "no rows", f"the table is empty; {AGAIN}")
    table = table[COLUMNS[name]].reset_index(drop=True).copy()
    for column in COLUMNS[name]:
        if column in TEXT:
            allowed = KINDS.get(column)
            bad = table[column].isna() | (~table[column].isin(allowed) if allowed else False)
            _refuse(where, table, column, bad, f"needs one of {', '.join(allowed)}" if allowed else "needs a name")
            table[column] = table[column].astype(str)
            continue
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        _refuse(where, table, column, ~np.isfinite(numbers), "needs a number")
        least_out = numbers <= 0 if column in POSITIVE else numbers < 0
        _refuse(where, table, column, least_out, "is not positive" if column in POSITIVE else "is out of range")
        lowest = LEAST.get((name, column))
        if lowest is not None:
            _refuse(where, table, column, numbers < lowest, f"is out of range: below {lowest:g}, no measurement")
        highest = LIMITS.get((name, column))
        if highest is not None:
            _refuse(where, table, column, numbers > highest, f"is above {highest:g}")
        table[column] = numbers.astype(int) if (numbers == numbers.round()).all() and _counts(column) else numbers
    return table


def _counts(column: str) -> bool:
    return column in {"batch", "draft_length", "tokens", "repeats", "position", "requests"}


def _refuse(where: str, table: pd.DataFrame, column: str, bad: Any, reason: str) -> None:
    """bad: one boolean a row. Rows are counted as a person sees them in the file: the header is line 1."""
    rows = np.flatnonzero(np.asarray(bad, dtype=bool))
    if len(rows):
        value = table[column].iloc[int(rows[0])]
        raise InputError(f"{where} line {int(rows[0]) + 2} column {column}", value, f"{reason}; {AGAIN}")


def _check_meaning(costs: pd.DataFrame, host_times: pd.DataFrame, acceptance: pd.DataFrame) -> None:
    quantiles = costs[list(QUANTILES)].to_numpy()
    _refuse("stage_costs.csv", costs, "p95_ms", (np.diff(quantiles, axis=1) < 0).any(axis=1), "quantiles must rise")
    _refuse("stage_costs.csv", costs, "segment", costs.duplicated(KEY), "this point is there twice")
    for segment in Segment:
        if segment not in set(costs["segment"]):
            raise InputError("stage_costs.csv", segment, f"the segment was never measured; {AGAIN}")
    _refuse("host_times.csv", host_times, "step", host_times.duplicated("step"), "this step is there twice")
    for step in Step:
        if step not in set(host_times["step"]):
            raise InputError("host_times.csv", step, f"the step was never measured; {AGAIN}")
    positions = acceptance["position"].to_numpy()
    expected = np.arange(1, len(positions) + 1)
    _refuse("acceptance.csv", acceptance, "position", positions != expected, "positions must count 1, 2, ...")
    rises = np.diff(acceptance["rate"].to_numpy(), prepend=1.0) > 0
    _refuse("acceptance.csv", acceptance, "rate", rises, "unconditional rates cannot rise with the position")
