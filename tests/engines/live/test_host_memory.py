"""What is free on the host is what the system and every container around the process leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engines.errors import InputError
from engines.live.device.host_memory import free_host_bytes
from engines.live.serving import memory

MIB = 1 << 20
SYSTEM = {"proc/meminfo": f"MemTotal: 9000 kB\nMemAvailable:   {1000 * 1024} kB\n"}
GROUP_1 = "sys/fs/cgroup/memory"
UNLIMITED = 9223372036854771712


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_1(folder: str, limit: int, used: int, cache: int) -> dict[str, str]:
    stat = f"inactive_file 7\ntotal_cache 9\ntotal_inactive_file {cache}\n"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n", f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }  # fmt: skip


def version_2(folder: str, limit: str, used: int, cache: int) -> dict[str, str]:
    stat = f"anon 5\ninactive_file {cache}\n"
    return {
        f"{folder}/memory.max": f"{limit}\n", f"{folder}/memory.current": f"{used}\n", f"{folder}/memory.stat": stat
    }  # fmt: skip


def test_without_a_container_the_system_says_it(tmp_path: Path) -> None:
    assert free_host_bytes(system(tmp_path, SYSTEM)) == 1000 * MIB


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("4:memory:/", version_1(GROUP_1, 300 * MIB, 120 * MIB, 20 * MIB), 200),
        ("4:cpu,memory:/docker/ab", version_1(GROUP_1, 300 * MIB, 120 * MIB, 20 * MIB), 200),  # the host's path
        ("4:memory:/job/step", version_1(f"{GROUP_1}/job", 300 * MIB, 120 * MIB, 20 * MIB), 200),  # of one around it
        ("4:memory:/a:b", version_1(f"{GROUP_1}/a:b", 300 * MIB, 120 * MIB, 20 * MIB), 200),
        ("4:cpu:/job", version_1(f"{GROUP_1}/job", 300 * MIB, 120 * MIB, 20 * MIB), 1000),
        ("4:memory:/", version_1(GROUP_1, UNLIMITED, 120 * MIB, 20 * MIB), 1000),
        ("4:memory:/", version_1(GROUP_1, 100 * MIB, 120 * MIB, 0), 0),
        ("0::/", version_2("sys/fs/cgroup", str(300 * MIB), 120 * MIB, 20 * MIB), 200),
        ("0::/job/step", version_2("sys/fs/cgroup/job", str(300 * MIB), 120 * MIB, 20 * MIB), 200),
        ("1:cpu:/\n0::/job", version_2("sys/fs/cgroup/unified/job", str(300 * MIB), 120 * MIB, 20 * MIB), 200),
        ("0::/", version_2("sys/fs/cgroup", "max", 120 * MIB, 20 * MIB), 1000),
        ("0::/", version_2("sys/fs/cgroup", str(3000 * MIB), 120 * MIB, 20 * MIB), 1000),
        ("0::/", {"sys/fs/cgroup/memory.max": f"{300 * MIB}\n"}, 1000),  # what it has is not known
    ],
)
def test_a_container_leaves_its_limit_less_what_it_has_and_cannot_drop(
    groups: str, files: dict[str, str], free: int, tmp_path: Path
) -> None:
    assert free_host_bytes(system(tmp_path, {**SYSTEM, "proc/self/cgroup": f"{groups}\n", **files})) == free * MIB


def test_a_plan_asks_the_host_what_is_free_or_else_what_there_is_and_says_so_where_it_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 5)
    assert memory.free_bytes(cpu) == 5
    assert free_host_bytes(tmp_path) is None
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 0)
    assert memory.free_bytes(cpu) == 0
    monkeypatch.setattr(memory, "free_host_bytes", lambda: None)
    assert memory.free_bytes(cpu) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(memory, "all_host_bytes", lambda: None)
    with pytest.raises(InputError, match="device = 'cpu': this system does not report how much memory it has"):
        memory.free_bytes(cpu)
