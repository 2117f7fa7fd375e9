"""A sweep over a Ray cluster, if Ray is installed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InputError
from experiments.sweep import workers
from experiments.sweep.config import Sweep
from experiments.sweep.store import Results
from experiments.sweep.sweep import run_sweep

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {
    "profile": str(ROOT / "results" / "demo-cpu" / "profile"),
    "architectures": ["pd", "pdv"],
    "concurrencies": [2, 6],
    "acceptance": "0.7",
    "workload": {"requests": 8, "output_tokens": "16"},
    "grid": {"prompt_tokens": [16, 1_000_000]},  # the second cannot be served
}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with one CPU each, whose workers find the project."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.second = nodes.add_node(num_cpus=1)
    ray.init(
        address=nodes.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
    )  # fmt: skip
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_a_cluster_of_two_nodes_ends_in_the_same_bytes(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep.from_dict(SMALL)
    monkeypatch.setattr(workers, "BATCH_S", 0.0)  # every simulation goes its own way
    on_ray = run_sweep(sweep, tmp_path / "ray", backend="ray")
    here = run_sweep(sweep, tmp_path / "here", jobs=1)
    assert on_ray.simulations == here.simulations == 24
    assert on_ray.rows["status"].value_counts().to_dict() == {"finished": 12, "failed": 12}
    for name in ("rows.parquet", "summary.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_a_node_that_is_lost_costs_nothing(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    add, added = Results.add, []

    def losing(store: Results, rows: Any) -> None:
        add(store, rows)
        added.append(len(rows))
        if len(added) == 1:
            cluster.remove_node(cluster.second, allow_graceful=False)
            while sum(node["Alive"] for node in ray.nodes()) > 1:
                time.sleep(0.1)

    monkeypatch.setattr(workers, "BATCH_S", 0.0)
    monkeypatch.setattr(Results, "add", losing)
    on_ray = run_sweep(Sweep.from_dict(SMALL), tmp_path / "ray", backend="ray")
    assert len(on_ray.rows) == sum(added) == on_ray.simulations == 24
    monkeypatch.setattr(Results, "add", add)
    run_sweep(Sweep.from_dict(SMALL), tmp_path / "here", jobs=1)
    assert (tmp_path / "ray" / "rows.parquet").read_bytes() == (tmp_path / "here" / "rows.parquet").read_bytes()


def test_a_node_with_another_version_of_the_project_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "program", lambda: "another")
    with pytest.raises(InputError, match="a node of the cluster has another version of pdv"):
        run_sweep(Sweep.from_dict(SMALL), tmp_path / "ray", backend="ray")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="Ray is not installed; install the extra: pip install 'pdv\\[ray\\]'"):
        run_sweep(Sweep.from_dict(SMALL), tmp_path / "ray", backend="ray")
