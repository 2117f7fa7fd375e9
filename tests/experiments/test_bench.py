"""`pdv bench` as a command, at tiny shapes: its tables, and that it fails where an engine is wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from engines.live.model.stages import Stages  # noqa: E402
from engines.record.metrics import summary  # noqa: E402
from experiments.cli import main  # noqa: E402
from experiments.compare.report import CELL_METRICS, STEADY  # noqa: E402
from tests.experiments import synthetic  # noqa: E402

pytestmark = pytest.mark.live
PAIR = "permutation:tiny+tiny-draft:alpha=0.7"
SMALLEST = (
    "--batches 1,3 --prompts 8 --context 16 --prompt-tokens 12 --output-tokens 20 --concurrencies 1,7 --budget-s 1"
)
Bench = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the command and returns its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(options: str) -> tuple[int, str, str]:
        code = main(f"bench --pair {PAIR} {SMALLEST} --out {tmp_path} {options}".split())
        return code, *capsys.readouterr()

    return run


def folder_of(tmp_path: Path) -> Path:
    (folder,) = tmp_path.iterdir()
    return folder


def test_one_command_checks_measures_and_stores(bench: Bench, tmp_path: Path) -> None:
    code, out, err = bench("")
    assert code == 0, err
    folder = folder_of(tmp_path)
    assert folder.name.endswith("permutation-tiny-tiny-draft-alpha-0.7")
    said = tomllib.loads((folder / "bench.toml").read_text())
    assert said["failures"] == []
    assert said["expected"] == "the closed form"
    assert set(said["seconds"]) == {"caches", "loading", "ceilings", "stages", "engines", "peers"}
    assert [findings["architecture"] for findings in said["caches"]] == ["target-only", "baseline", "pd", "pdv"]
    assert all(findings["sequences"] and all(findings["damage"].values()) for findings in said["caches"])

    stages = pd.read_csv(folder / "stages.csv")
    assert (
        len(stages) == 3 * 2 + 2
    )  # draft, and verify with drafts and without, at two batches; prefills of one length
    assert (stages[["p50_ms", "floor_ms", "times_floor", "kernels"]] > 0).all(axis=None)

    engines = pd.read_csv(folder / "engines.csv")
    assert len(engines) == 2 + 3 * 2 * 2  # baseline; the others at default and large limits; two concurrencies
    assert (engines["equal"] == engines["requests"]).all()
    assert (engines["checked"] == engines["requests"]).all()
    assert (engines["requests"] > engines["clients"]).all()
    assert (engines[list(CELL_METRICS)].drop(columns=STEADY) > 0).all(axis=None)
    assert set(summary(synthetic.simulated())) <= {*engines.columns}  # named as everywhere
    assert engines["running_at_least_1"].between(0.1, 1).all()
    assert (engines.loc[engines["architecture"] == "baseline", "running_at_least_2"] == 0).all()
    assert engines["acceptance_length"].eq(1).equals(engines["architecture"] == "target-only")

    peers = pd.read_csv(folder / "peers.csv")
    assert peers["requests"].tolist() == [1, 1, 7, 7]
    assert (peers["equal"] == peers["requests"]).all()

    *report, _ = out.splitlines()  # the last names the folder
    assert max(map(len, report)) <= 110
    assert max(map(len, (folder / "bench.txt").read_text().splitlines())) <= 110
    assert "all checks passed" in out
    assert "engines:" in err  # how long each part took


def test_a_verify_that_lies_is_noticed(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It claims that every draft was right."""
    verify = Stages.verify

    def lying(stages: Stages, slots: torch.Tensor, k: int, sampling: bool = False) -> torch.Tensor:
        found = verify(stages, slots, k, sampling)
        found[:, 0] = k
        return found

    monkeypatch.setattr(Stages, "verify", lying)
    code, out, err = bench("--no-peers --architectures pd")
    assert code == 1
    assert "outputs are exact, first at request" in err
    assert "FAILED" in out
    assert tomllib.loads((folder_of(tmp_path) / "bench.toml").read_text())["failures"]


def test_a_broken_cache_is_noticed_though_every_output_is_right(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = Stages.verify

    def careless(stages: Stages, slots: torch.Tensor, *args: object) -> torch.Tensor:
        stages.target_pool.values[1][slots, 3] = 0
        return verify(stages, slots, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Stages, "verify", careless)
    code, out, err = bench("--no-peers --architectures pdv --concurrencies 2")
    assert code == 1
    assert "pdv: the cache is wrong: target" in err
    assert re.search(r"outputs: (\d+) of \1 equal the closed form", out)


def test_a_check_that_notices_nothing_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.bench.caches.check_slot", lambda *args, **options: [])
    code, _, err = bench("--no-peers --architectures pd --concurrencies 1")
    assert code == 1
    assert "pd: damage made on purpose (another slot) was not noticed" in err


def test_a_trained_pair_is_compared_with_generate(bench: Bench, tmp_path: Path) -> None:
    code, out, err = bench("--pair embedded --no-peers --architectures pd --concurrencies 3")
    assert code == 0, err
    engines = pd.read_csv(folder_of(tmp_path) / "engines.csv")
    assert (engines["checked"] == 4).all()
    assert "equal transformers' generate" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--context 600", "the pair supports 512 positions"),
        ("--architectures pd,fast", "architecture = 'fast'"),
        ("--pair permutation:tiny+huge", "shape = 'huge'"),
        ("--pair no/such/folder", "no such folder"),
        ("--batches 0", "batches = '0'"),
        ("--requests-per-client 1", "requests_per_client = 1"),
        ("--device tpu", "device = 'tpu'"),
    ],
)
def test_bad_input_gets_one_line(bench: Bench, tmp_path: Path, options: str, message: str) -> None:
    code, out, err = bench(options)
    (line,) = err.splitlines()
    assert (code, out) == (2, "")
    assert message in line
    assert list(tmp_path.iterdir()) == []
