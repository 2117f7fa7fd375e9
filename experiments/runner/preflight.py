"""Check that a pair fits a device, from the model configurations, before any weights are read.

Every command that loads a pair calls this first.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import InputError
from engines.pairs.permutation import PREFIX, parse_pair
from engines.policy.architecture import Architecture
from engines.policy.context import context_of
from experiments.program.progress import console

if TYPE_CHECKING:
    from calibrate.stage_costs import Grid
    from engines.live.serving.memory import MemoryPlan

MOST_GIB = 1 << 30  # largest reserve: far beyond any device
_DEVICE = re.compile(r"cpu|cuda(:\d{1,2})?")  # torch mistakes larger numbers for negative ones


def check_live(device: str, pair: str = "embedded", target: str | None = None, draft: str | None = None) -> None:
    """Raise InputError unless live engines can run here: torch, the device and the model folders must exist.

    pair: a folder or the name of a pair. target, draft: folders to use instead of the pair.
    """
    if not _DEVICE.fullmatch(device):
        raise InputError("device", device, "use cpu, cuda or cuda:N")
    if importlib.util.find_spec("torch") is None:
        raise InputError("device", device, "live engines need torch; install the extra: pip install 'pdv[engines]'")
    if (target is None) != (draft is None):
        raise InputError("target, draft", (target, draft), "give both, or use --pair")
    folders = {"pair": pair} if target is None else {"target": target, "draft": draft}
    for field, folder in folders.items():
        if target is None and pair.startswith(PREFIX):
            parse_pair(pair)
        elif folder != "embedded" and not Path(str(folder)).is_dir():
            raise InputError(field, folder, "no such folder; give a model folder, or `embedded` for the default pair")
    from engines.live.model.pairs import find_device

    find_device(device)


def check_fits(
    architecture: Architecture,
    pair: str | Path,
    draft: str | Path | None = None,
    device: str = "cpu",
    *,
    max_context: int | None = None,
    reserve_gib: float | None = None,
) -> None:
    """Raise InputError, with the numbers, unless the pair and the architecture's slots fit the device.

    pair, draft, device: see engines.live.model.pairs.load_pair. max_context: tokens per slot, by default the pair's
    limit. reserve_gib: memory to leave unused, by default a tenth of the free memory but at most 4 GiB.
    """
    _plan(architecture, pair, draft, device, max_context, reserve_gib).check(architecture.slots)


def fill(
    architecture: Architecture,
    most: int,
    pair: str | Path,
    draft: str | Path | None = None,
    device: str = "cpu",
    *,
    max_context: int | None = None,
    reserve_gib: float | None = None,
) -> Architecture:
    """Return the architecture with as many slots as fit the device, but at most `most` and at most MOST_SLOTS.

    most: the number of requests that the load can have in the system at once; if fewer slots are used, one line on
    standard error says how many. The other arguments and errors are those of check_fits.
    """
    from engines.live.serving.memory import MOST_SLOTS, with_fitting_slots

    plan = _plan(architecture, pair, draft, device, max_context, reserve_gib)
    filled = with_fitting_slots(architecture, plan, most=min(most, MOST_SLOTS))
    if filled.slots < most:
        bound = f"{filled.slots}, the maximum; " if filled.slots < plan.slots else ""
        console.print(
            f"{architecture.name}: slots: {bound}{plan.slots} fit ({plan})", highlight=False, soft_wrap=True
        )
    return filled


def context_on(
    architecture: Architecture, pair: str | Path, draft: str | Path | None = None, max_context: int | None = None
) -> int:
    """Return the tokens of prompt and output together that a live engine would accept. Raises InputError."""
    from engines.live.model.kv_cache import positions_of
    from engines.live.model.pairs import load_configs

    return context_of(positions_of(*load_configs(pair, draft)), architecture.draft_length.maximum, max_context)


def check_calibration_fits(
    points: dict[str, list[int]], pair: str | Path, draft: str | Path | None = None, device: str = "cpu"
) -> None:
    """Like check_fits, for a calibration over these points (see grid_of)."""
    from calibrate.measure import footprint
    from engines.live.model.kv_cache import positions_of
    from engines.live.model.pairs import load_configs

    grid = grid_of(points)
    grid.check(positions_of(*load_configs(pair, draft)))
    architecture, context = footprint(grid)
    check_fits(architecture, pair, draft, device, max_context=context)


def grid_of(points: dict[str, list[int]]) -> Grid:
    """Return the grid of a calibration from its points: batches, draft_lengths, contexts, prompt_tokens, packed.

    Raises InputError.
    """
    from calibrate.stage_costs import Grid

    return Grid(**{name: tuple(values) for name, values in points.items()})


def _plan(
    architecture: Architecture, pair: str | Path, draft: str | Path | None, device: str, max_context: int | None,
    reserve_gib: float | None,
) -> MemoryPlan:  # fmt: skip
    from engines.live.model.pairs import default_dtype, find_device, load_configs
    from engines.live.serving.memory import GIB, plan_slots

    place = find_device(device)
    reserve = None if reserve_gib is None else int(min(reserve_gib, MOST_GIB) * GIB)
    configs = load_configs(pair, draft)
    return plan_slots(architecture, configs, place, default_dtype(place), max_context, reserve=reserve)
