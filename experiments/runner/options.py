"""Short texts of the command line and of configs, turned into values: lengths, draft lengths, limits, devices."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

from engines.errors import InputError
from engines.pairs.permutation import PREFIX, parse_pair
from engines.policy.architecture import MOST_SLOTS, Architecture, Step
from engines.policy.draft_length import AdaptiveDraftLength, DraftLength, FixedDraftLength
from engines.workload.workload import FixedLength, Lengths, LogNormalLength, UniformLength

AUTO = "auto"  # as many slots as fit the device
_DEVICE = re.compile(r"cpu|cuda(:\d{1,2})?")  # torch takes larger numbers for negative ones
MOST_SEED = 2**63 - 1  # what the generators of torch take
_WHOLE = re.compile(r"\d{1,18}")
_RANGE = re.compile(r"(\d{1,18})-(\d{1,18})")
_DECIMAL = r"(\d{1,18}(?:\.\d{1,18})?)"
_LOGNORMAL = re.compile(rf"{_DECIMAL}~{_DECIMAL}\[(\d{{1,18}})-(\d{{1,18}})\]")


def parse_lengths(field: str, text: str) -> Lengths:
    """ "64": always 64 tokens. "16-96": uniform. "64~0.5[16-256]": lognormal with median 64 and sigma 0.5, cut to
    16..256. Raises InputError."""
    if _WHOLE.fullmatch(text) and int(text) >= 1:
        return FixedLength(int(text))
    if (match := _RANGE.fullmatch(text)) and 1 <= int(match[1]) <= int(match[2]):
        return UniformLength(int(match[1]), int(match[2]))
    if (match := _LOGNORMAL.fullmatch(text)) and 1 <= int(match[3]) <= int(match[4]) and float(match[1]) > 0:
        return LogNormalLength(float(match[1]), float(match[2]), int(match[3]), int(match[4]))
    raise InputError(field, text, "give tokens as 64 (fixed), 16-96 (uniform) or 64~0.5[16-256] (lognormal)")


def parse_draft_length(text: str) -> DraftLength:
    """ "4": always 4 drafts. "adaptive": between 2 and 8, starting at 4. "3-6": adaptive within these bounds."""
    if text == "adaptive":
        return AdaptiveDraftLength()
    if match := _RANGE.fullmatch(text):
        low, high = int(match[1]), int(match[2])
        if 1 <= low <= high:
            start = min(max(AdaptiveDraftLength.start, low), high)
            return AdaptiveDraftLength(minimum=low, maximum=high, start=start)
    elif _WHOLE.fullmatch(text) and int(text) >= 1:
        return FixedDraftLength(int(text))
    raise InputError("draft_length", text, "use a whole number of at least 1, a range such as 2-8, or adaptive")


def parse_batch_limits(text: str) -> dict[Step, int]:
    """ "draft=12,verify=24": largest batch (requests) of these steps."""
    limits = {}
    for item in text.split(","):
        step, _, limit = item.partition("=")
        known = {str(member): member for member in Step}
        if step.strip() not in known or not _WHOLE.fullmatch(limit.strip()) or int(limit) < 1:
            remedy = f"write STEP=N, separated by commas; the steps are {', '.join(known)}"
            raise InputError("batch_limit", text, remedy)
        limits[known[step.strip()]] = int(limit)
    return limits


def parse_numbers(field: str, text: str) -> list[int]:
    """ "1,2,4": whole numbers of at least 1, each once, in order of size. Raises InputError."""
    items = [item.strip() for item in text.split(",")]
    if not all(_WHOLE.fullmatch(item) and int(item) >= 1 for item in items):
        raise InputError(field, text, "list whole numbers of at least 1, separated by commas")
    return sorted({int(item) for item in items})


def parse_slots(text: str | None) -> int | None:
    """ "48": that many slots; None stays None. Raises InputError, also for "auto", which live runs see to."""
    if text == AUTO:
        raise InputError("slots", text, "a simulation has no device whose memory could be filled; give a number")
    if text is not None and not _WHOLE.fullmatch(text):
        raise InputError("slots", text, f"use a whole number from 1 to {MOST_SLOTS}, or, for a live run, auto")
    return None if text is None else int(text)


def adjusted(
    architecture: Architecture,
    *,
    draft_length: str | None = None,
    batch_limit: str | None = None,
    workers: int | None = None,
    slots: int | None = None,
    permits: int | None = None,
    hybrid: int | None = None,
) -> Architecture:
    """A copy with the settings that are given.

    workers: of every lane that carries requests or, where no lane does, of every lane. permits: steps that may
    run at once on a device. hybrid: active requests at or below which draft and verify run as one step.
    Raises InputError, also for a batch limit of a step that the architecture does not have.
    """
    if batch_limit is not None:
        limits = parse_batch_limits(batch_limit)
        present = {step for lane in architecture.lanes for step in lane.steps}
        for step in limits:
            if step not in present:
                remedy = f"{architecture.name} has no such step; it has {', '.join(sorted(present))}"
                raise InputError("batch_limit", str(step), remedy)
        architecture = architecture.with_batch_limits(limits)
    if workers is not None:
        carrying = any(lane.run_to_completion for lane in architecture.lanes)
        lanes = tuple(
            dataclasses.replace(lane, workers=workers) if lane.run_to_completion or not carrying else lane
            for lane in architecture.lanes
        )
        architecture = architecture.replace(lanes=lanes)
    changes: dict[str, object] = {}
    if draft_length is not None:
        changes["draft_length"] = parse_draft_length(draft_length)
    for name, value in (("slots", slots), ("permits", permits), ("hybrid_at_or_below", hybrid)):
        if value is not None:
            changes[name] = value
    return architecture.replace(**changes) if changes else architecture


def check_live(device: str, pair: str, target: str | None = None, draft: str | None = None) -> None:
    """Raises InputError unless live engines can run here: torch, the device and the models' folders are there.

    target and draft: folders that stand in for the pair, which may also be the name of a permutation pair.
    """
    if not _DEVICE.fullmatch(device):
        raise InputError("device", device, "use cpu, cuda or cuda:N")
    if importlib.util.find_spec("torch") is None:
        raise InputError("device", device, "live engines need torch; install the extra: pip install 'pdv[engines]'")
    if (target is None) != (draft is None):
        raise InputError("target, draft", (target, draft), "give both, or a --pair")
    folders = {"pair": pair} if target is None else {"target": target, "draft": draft}
    for field, folder in folders.items():
        if target is None and pair.startswith(PREFIX):
            parse_pair(pair)
        elif folder != "embedded" and not Path(str(folder)).is_dir():
            raise InputError(field, folder, "no such folder; give a model folder, or `embedded` for the shipped pair")
    from engines.live.model.pairs import find_device

    find_device(device)


def check_kernels() -> None:
    """Raises InputError unless Triton's kernels can be compiled and timed here, on a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise InputError("device", "cuda", "torch finds no such device here; run this on a machine that has one")
    if importlib.util.find_spec("triton") is None:
        raise InputError("device", "cuda", "its kernels need triton; install the extra: pip install 'pdv[cuda]'")


def check_shared_memory(needed: int) -> None:
    """Raises InputError unless a program may have so many bytes of the CUDA device's shared memory."""
    import torch

    from engines.live.kernels.dependent_launch import shared_bytes_of

    there = shared_bytes_of(torch.device("cuda", torch.cuda.current_device()))
    if there < needed:
        remedy = f"a program has {there} bytes of shared memory there and needs {needed}; use a Hopper GPU or later"
        raise InputError("device", torch.cuda.get_device_name(), remedy)


def positive(field: str, value: float | None) -> None:
    """Raises InputError unless the value is left out or above 0."""
    if value is not None and not (value > 0 and value < float("inf")):
        raise InputError(field, value, "use a number above 0")


def at_least(field: str, value: float | None, least: float) -> None:
    """Raises InputError unless the value is left out or at least `least`."""
    if value is not None and not least <= value < float("inf"):
        raise InputError(field, value, f"use a number of at least {least:g}")
