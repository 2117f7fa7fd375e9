"""Find how much host memory a process can still allocate within the limits of its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Files of a control group by version: limit, usage, and the part of the usage that is reclaimable cache
# (Linux documentation, admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst).
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
MOUNTS = {1: ("sys/fs/cgroup/memory",), 2: ("sys/fs/cgroup", "sys/fs/cgroup/unified")}


def free_host_bytes(root: Path = Path("/")) -> int | None:
    """Return the smallest of what the system has available and what each control group leaves, in bytes.

    Returns None if neither is known. root: root of the file system to read from.
    """
    available = _number(root / "proc/meminfo", "MemAvailable:")
    known = [] if available is None else [available * 1024]
    for version, group in _groups(root):
        limit, used, cache = FILES[version]
        most, taken = _number(group / limit), _number(group / used)
        if most is not None and taken is not None:
            known.append(max(0, most - taken + (_number(group / "memory.stat", cache) or 0)))
    return min(known, default=None)


def all_host_bytes() -> int | None:
    """Return all memory of the system, free or not, in bytes, or None if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _groups(root: Path) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of each control group that limits this process: its own and all its parents.

    In a container, the path may be that of the host, so that only the mount itself exists.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        for mount in MOUNTS[version]:
            inner = Path(path.lstrip("/"))
            yield from ((version, root / mount / part) for part in dict.fromkeys([inner, *inner.parents]))


def _number(path: Path, name: str | None = None) -> int | None:
    """Return the number in a file or, given a name, on the line that begins with it. None if there is none."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    found = [line[0 if name is None else 1] for line in lines if name is None or line[:1] == [name]]
    return int(found[0]) if found and found[0].isdigit() else None
