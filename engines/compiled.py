"""The compiled modules: used where `make compiled` has built them from exactly these sources, else plain Python runs.

A build lies in a folder named after the digest of all sources that it depends on, so that a change of any of them
leaves it unused. `python -m experiments.program.compile` makes it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from sysconfig import get_config_var
from types import ModuleType

MODULES = (
    "calibrate.contention", "calibrate.measured_contention", "engines.policy.batch", "engines.policy.captured_sizes",
    "engines.policy.request_state", "engines.policy.scheduler", "engines.policy.segment_shape",
    "engines.record.exact_sum", "engines.record.rows", "engines.record.totals", "engines.workload.clients",
    "sim.costs", "sim.deployment", "sim.gpu", "sim.population", "sim.replica",
)  # fmt: skip
ROOT = Path(__file__).parents[1]
BUILDS = ROOT / "build" / "compiled"
SWITCH = "PDV_COMPILED"  # environment variable; 0 runs plain Python all the same


def build_folder() -> Path:
    """Return the folder of the build of these sources for this interpreter, whether it exists or not."""
    digest = hashlib.sha256(str(get_config_var("EXT_SUFFIX")).encode())
    for package in ("engines", "calibrate", "sim"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "live" not in path.parts[len(ROOT.parts) :]:
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return BUILDS / digest.hexdigest()[:32]


def in_use() -> bool:
    """Whether this process runs compiled modules."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def use() -> None:
    """Import the compiled modules from now on, if there is a build of these sources."""
    if os.environ.get(SWITCH) != "0" and BUILDS.is_dir() and not in_use() and (folder := build_folder()).is_dir():
        sys.meta_path.insert(0, _Finder(folder))


class _Finder:
    """Finds the modules of a build."""

    def __init__(self, folder: Path) -> None:
        suffix = str(get_config_var("EXT_SUFFIX"))
        self._paths = {
            ".".join(path.relative_to(folder).parts).removesuffix(suffix): str(path)
            for path in folder.rglob(f"*{suffix}")
        }

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = self._paths.get(name)
        return (
            None if found is None else spec_from_file_location(name, found, loader=ExtensionFileLoader(name, found))
        )
