"""Read recorded masks of other systems: which drafts of each request agreed, as JSON lines.

Each line is {"request": 7, "bits": [-1, 1, 1, 0]}, with one bit per output token, as in a tape: 1 if the draft model
would have proposed it, 0 if not, -1 if nobody knows. The first token comes from prefill, so its bit is ignored.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic_core import from_json

from engines.errors import InputError
from engines.storage.reading import read_bytes, require_file
from engines.storage.validation import Settings, Whole, checked

MOST_BYTES = 1 << 30
SUFFIX = ".jsonl"
FIELD = "acceptance"
_REMEDY = "give a file of masks"
_SHAPE = 'write one {"request": 0, "bits": [-1, 1, 0]} per line'


class _Mask(Settings):
    request: Whole
    bits: Annotated[list[Literal[-1, 0, 1]], Field(min_length=1)]


def read_masks(path: str | Path) -> dict[int, np.ndarray]:
    """Return the masks by request id, int8 each. A file that has not changed is read once.

    Raises InputError with the line for invalid JSON, a missing or wrong value and a request that is there twice, and
    for a file that cannot be read or has no line.
    """
    path = Path(path)
    require_file(FIELD, path, MOST_BYTES, _REMEDY)
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, changed_ns: int) -> dict[int, np.ndarray]:
    masks: dict[int, np.ndarray] = {}
    for number, line in enumerate(read_bytes(FIELD, path, MOST_BYTES, _REMEDY).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{FIELD} {path.name}, line {number}"
        try:
            values = from_json(line)
        except ValueError as error:
            raise InputError(
                where, line.decode(errors="replace")[:80], f"not valid JSON ({error}); {_SHAPE}"
            ) from error
        if not isinstance(values, dict):
            raise InputError(where, values, _SHAPE)
        mask = checked(_Mask, values, where, _SHAPE)
        for place, bit in enumerate(values["bits"]):
            if type(bit) is not int:  # true and 1.0 equal 1
                raise InputError(f"{where} bits.{place}", bit, f"use -1, 0 or 1; {_SHAPE}")
        if mask.request in masks:
            raise InputError(f"{where} request", mask.request, "it has a mask already; leave one of the two out")
        masks[mask.request] = np.array(mask.bits, dtype=np.int8)
    if not masks:
        raise InputError(FIELD, str(path), f"the file has no masks; {_SHAPE}")
    return masks
