"""A profile: the measurements of one pair on one device. Reading and writing it needs no torch.

A folder holds `profile.toml` (what was measured, where, when and with which versions), four CSV tables
(`stage_costs`, `host_times`, `contention`, `acceptance`) that people can read and git can diff and, if a live run
recorded them, the acceptance tapes in `tapes.parquet`. Durations are in milliseconds.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w

from calibrate.profile_tables import (
    ACCEPTANCE_COLUMNS,
    AGAIN,
    COLUMNS,
    CONTENTION_COLUMNS,
    HOST_COLUMNS,
    HOST_TIME,
    KEY,
    QUANTILES,
    STAGE_COST_COLUMNS,
    ProfileSettings,
    check_meaning,
    check_table,
    numbers,
    read_csv,
)
from engines.errors import InputError
from engines.policy.architecture import Step
from engines.policy.captured_sizes import TOKENS, CapturedSizes
from engines.record.schema import read_tapes
from engines.storage.files import finish, replace_files
from engines.storage.reading import read_toml
from engines.storage.validation import checked

__all__ = [
    "ACCEPTANCE_COLUMNS", "COLUMNS", "CONTENTION_COLUMNS", "HOST_COLUMNS", "KEY", "QUANTILES", "SCHEMA_VERSION",
    "STAGE_COST_COLUMNS", "Profile",
]  # fmt: skip

SCHEMA_VERSION = 4
BEFORE_3 = {"batch": "batch_size", "woken_ms": "wake_up_ms", "going_on_ms": "back_to_back_ms"}  # renamed since
PROFILE_FILES = ("profile.toml", *(f"{name}.csv" for name in COLUMNS), "tapes.parquet")
FLOAT_DIGITS = 6


@dataclass
class Profile:
    """The measurements, checked on creation. Raises InputError naming the table, column, row and remedy.

    info: device, pair, dtype, date, command (text), versions (a table), max_context (tokens), draft_length (k at
    which acceptance was measured) and, if batches are padded to fixed sizes, batch_buckets and token_buckets.
    stage_costs: one row per measured point. Prefill: batch_size = number of prompts, tokens = their total,
    draft_length and context_tokens 0. Draft: all k passes, tokens = batch_size * k. Verify: tokens = batch_size * (k
    + 1). context_tokens = mean tokens per request in the KV cache. kernels = kernels per execution.
    host_times: one row per step, in the order of Step: host time of a batch (see calibrate.host_times).
    contention: one row per stream of a group that ran together. solo_ms = mean duration alone; rate = speed while all
    were on the device, as a fraction of the solo speed.
    acceptance: rate at position i = unconditional probability that the first i drafts are all accepted. requests,
    alpha_mean and alpha_sd (standard deviation over requests of the conditional acceptance) are the same in every
    row. tapes: request ID -> int8 array, as in engines.record.run.Run.
    """

    info: dict[str, Any]
    stage_costs: pd.DataFrame
    host_times: pd.DataFrame
    contention: pd.DataFrame
    acceptance: pd.DataFrame
    tapes: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked(ProfileSettings, self.info, "profile.toml", AGAIN)
        for name in COLUMNS:
            setattr(self, name, check_table(name, getattr(self, name), f"{name}.csv"))
        check_meaning(self.stage_costs, self.host_times, self.acceptance)
        self.host_times = self.host_times.set_index("step").loc[list(Step)].reset_index()

    @property
    def captured(self) -> CapturedSizes | None:
        """The sizes to which the engines of this device pad; None if they do not pad.

        Profiles before version 4 do not name the token sizes, which were then TOKENS.
        """
        batches = self.info.get("batch_buckets")
        return CapturedSizes(batches, self.info.get("token_buckets", TOKENS)) if batches else None

    def save(self, folder: Path | str) -> Path:
        """Write the folder.

        An existing profile is replaced completely or, if this fails or is killed, not at all; other files are kept.
        Floats keep 6 significant digits. `rows` in profile.toml reveals truncated tables. Raises InputError if
        another process writes there.
        """
        folder = Path(folder)
        rows = {name: len(getattr(self, name)) for name in COLUMNS}
        info = {"schema_version": SCHEMA_VERSION, **self.info, "rows": rows}
        contents = {"profile.toml": tomli_w.dumps(info).encode()}
        for name in COLUMNS:
            text = getattr(self, name).to_csv(index=False, float_format=f"%.{FLOAT_DIGITS}g", lineterminator="\n")
            contents[f"{name}.csv"] = text.encode()
        if self.tapes:
            tapes = io.BytesIO()
            bits = [tape.tolist() for tape in self.tapes.values()]
            pd.DataFrame({"request": list(self.tapes), "bits": bits}).to_parquet(tapes, index=False)
            contents["tapes.parquet"] = tapes.getvalue()
        replace_files(folder, contents, PROFILE_FILES)
        return folder

    @staticmethod
    def load(folder: Path | str) -> Profile:
        """Read a folder. Raises InputError if anything in it is missing, damaged or of an unknown version."""
        folder = Path(folder)
        finish(folder, PROFILE_FILES)
        version, info = _read_info(folder / "profile.toml")
        rows = info.pop("rows", {})
        tables: dict[str, pd.DataFrame] = {}
        for name in COLUMNS:
            path = folder / f"{name}.csv"
            if name == "host_times" and version == 1:
                tables[name] = _first_host_times(tables["stage_costs"], f"{folder}/stage_costs.csv")
                continue
            table = read_csv(path)
            table = table.rename(columns=BEFORE_3) if version < 3 else table
            tables[name] = _as_laws(table, path) if name == "host_times" and version < 4 else table
            if len(tables[name]) != rows.get(name, len(tables[name])):
                raise InputError(
                    str(path), f"{len(tables[name])} rows",
                    f"profile.toml says {rows[name]}: truncated; {AGAIN} (if this is intended, correct `rows`)",
                )  # fmt: skip
        path = folder / "tapes.parquet"
        tapes = read_tapes("profile", path, AGAIN) if path.exists() or path.is_symlink() else {}
        try:
            return Profile(info, **tables, tapes=tapes)
        except InputError as error:
            raise InputError(f"{folder}/{error.field}", error.value, error.remedy) from error


def _read_info(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the schema version and all other settings."""
    if not path.is_file():
        raise InputError("profile", str(path.parent), "no profile.toml there; give a folder from `pdv calibrate`")
    info = read_toml("profile", path, AGAIN)
    version = info.pop("schema_version", None)
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise InputError(f"{path} schema_version", version, f"this version reads 1 to {SCHEMA_VERSION}; {AGAIN}")
    checked(ProfileSettings, info, str(path), AGAIN)
    return version, info


def _first_host_times(costs: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the table of a version 1 profile, where the host time of a batch was that of its slowest segment.

    Version 1 does not distinguish back-to-back from wake-up.
    """
    for column in ("segment", "host_ms"):
        if column not in costs:
            raise InputError(where, ", ".join(map(str, costs.columns)), f"column {column} is missing; {AGAIN}")
    host_ms = numbers(where, costs, "host_ms", HOST_TIME)
    known = host_ms.groupby(costs["segment"]).max().to_dict()
    times = [max((known[segment] for segment in step.segments if segment in known), default=0.0) for step in Step]
    return _law(pd.Series(list(Step)), pd.Series(times), pd.Series(times))


def _as_laws(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Convert the table of a version 2 or 3 profile, with one wake-up and one back-to-back time per step."""
    for column in ("step", "wake_up_ms", "back_to_back_ms"):
        if column not in table:
            raise InputError(str(path), ", ".join(map(str, table.columns)), f"column {column} is missing; {AGAIN}")
    wake_up, back_to_back = (numbers(str(path), table, name, HOST_TIME) for name in ("wake_up_ms", "back_to_back_ms"))
    return _law(table["step"], wake_up, back_to_back)


def _law(steps: pd.Series, wake_up_ms: pd.Series, back_to_back_ms: pd.Series) -> pd.DataFrame:
    """Return host times of which half is before the device and half after it."""
    half = np.minimum(wake_up_ms, back_to_back_ms) / 2
    rest = (wake_up_ms - back_to_back_ms).clip(lower=0.0)
    values = [steps, half, 0.0, rest, 0.0, half, 0.0]
    return pd.DataFrame(dict(zip(HOST_COLUMNS, values, strict=True)))
