"""Who imports whom, imports within functions included: no circle, and every arrow points downward."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("engines", "calibrate", "sim", "experiments", "pdv")
ROOMS = ("device", "kernels", "model", "serving")
LIBRARIES = ("torch", "transformers", "triton", "safetensors", "tokenizers")
MEASURING = ("calibrate.contention", "calibrate.measure", "calibrate.measure_contention", "calibrate.stage_costs",
             "calibrate.workbench")  # fmt: skip
LIVE = ("experiments.bench", "experiments.checks", "experiments.embedded_pair", "experiments.runner")


def test_the_rules_below_see_the_imports_within_functions_and_of_types() -> None:
    assert "engines.live.kernels.table_updates_triton" in imports()["engines.live.kernels.table_updates"]
    assert "engines.live.serving.memory" in imports()["experiments.runner.preflight"]


def test_no_modules_import_one_another() -> None:
    graph = {name: found & imports().keys() for name, found in imports().items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # raises CycleError, naming a circle


def test_floors_import_only_floors_below() -> None:
    for name, found in imports().items():
        floor = FLOORS.index(name.split(".")[0])
        above = {other for other in found if other.split(".")[0] in FLOORS[floor + 1 :]}
        assert not above, f"{name} imports {above}"


def test_rooms_of_the_live_engine_import_only_rooms_below() -> None:
    for name, found in imports().items():
        if name.startswith("engines.live."):
            room = ROOMS.index(name.split(".")[2])
            above = {
                other
                for other in found
                if other.startswith("engines.live.") and other.split(".")[2] in ROOMS[room + 1 :]
            }
            assert not above, f"{name} imports {above}"


def test_only_what_measures_imports_torch() -> None:
    for name, found in imports().items():
        live = name.startswith(("engines.live.", *(f"{package}." for package in LIVE))) or name in MEASURING
        heavy = {other.split(".")[0] for other in found} & set(LIBRARIES)
        assert live or not heavy, f"{name} imports {heavy}"


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports: our modules by their full names, others as they are written."""
    paths = {name_of(path): path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))}
    graph = {}
    for name, path in paths.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & paths.keys() or {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = found - {name}
    return graph


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
