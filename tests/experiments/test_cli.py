"""The command line: good input works, from the first option to the record."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from engines.pairs.permutation import expected_tape, parse_pair
from engines.pairs.prompts import permutation_prompts
from engines.record.metrics import summary
from engines.record.run import Run
from engines.workload.workload import FixedLength, make_workload
from experiments.cli import main
from tests.experiments import synthetic

ROOT = Path(__file__).parents[2]
PAIR = "permutation:tiny+tiny-draft:alpha=0.7,0.3"


INTERRUPTED = """
import os, signal, sys, time
import experiments.commands.simulate as command
from experiments.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background starts its children without

def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

command.predict = interrupted
sys.exit(main(["simulate", "--profile", sys.argv[1], "--out", sys.argv[2]]))
"""


def test_interrupting_ends_with_one_line_and_exit_code_130(work: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(work / "profile"), str(work / "interrupted")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.splitlines() == ["pdv: interrupted"]
    assert not (work / "interrupted").exists()


NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
from experiments.cli import main
for command in {commands!r}:
    assert main(command.split()) == 0, command
assert "torch" not in sys.modules
"""


def test_simulating_comparing_drawing_tracing_and_reporting_need_no_torch(work: Path, tmp_path: Path) -> None:
    commands = [
        f"simulate -p {work}/profile -c 3 --requests 6 --out {tmp_path}/simulated",
        f"simulate -p {work}/profile --replay {work}/live/pdv-r1 --out {tmp_path}/replay",
        f"compare {work}/live {work}/simulated --profile {work}/profile --out {tmp_path}/comparison.csv",
        f"figures {work}/live {work}/simulated --profile {work}/profile --out {tmp_path}/figures",
        f"trace {work}/simulated/pdv --out {tmp_path}/trace.json",
        f"report {work} --out {tmp_path}/report.html",
    ]
    script = NO_TORCH.format(commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figures" / "load.pdf").stat().st_size > 1000


FLEET = "--replicas 3 --router least-loaded -c 9 --requests 30 --acceptance 0.8"


def test_a_fleet_prints_and_writes_the_metrics_of_every_replica(
    in_work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = f"simulate -p profile {FLEET} --metrics {tmp_path}/metrics.csv --out {tmp_path}/fleet"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "metrics.csv", index_col="replica")
    assert table.index.tolist() == ["fleet", "0", "1", "2"]
    assert table.loc["fleet", "requests"] == 30
    assert table["requests"].sum() == 60
    run = Run.load(tmp_path / "fleet")
    assert (run.info["replicas"], run.info["router"]) == (3, "least-loaded")
    expected = {name: pytest.approx(value, rel=1e-5, nan_ok=True) for name, value in summary(run).items()}
    assert {name: table.loc["fleet", name] for name in expected} == expected
    law = re.search(r"Little's law: ([\d.]+) requests in the system, .* = ([\d.]+)", printed)
    assert law is not None
    assert law[1] == law[2]
    assert float(law[1]) == pytest.approx(table.loc["fleet", "mean_in_system"], rel=1e-3)
    assert "beyond the profile" not in printed  # nothing can be
    assert main(f"trace {tmp_path}/fleet --out {tmp_path}/trace.json".split()) == 0


def test_without_a_record_the_metrics_are_the_same_and_nothing_else_is_written(
    in_work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(f"simulate -p profile {FLEET} --metrics {tmp_path}/with.csv --out {tmp_path}/fleet".split()) == 0
    with_record = capsys.readouterr().out
    before = sorted(in_work.rglob("*"))
    assert main(f"simulate -p profile {FLEET} --metrics {tmp_path}/without.csv --no-record".split()) == 0
    without = capsys.readouterr().out
    assert sorted(in_work.rglob("*")) == before
    assert (tmp_path / "without.csv").read_bytes() == (tmp_path / "with.csv").read_bytes()
    assert with_record.startswith(without)


def test_a_simulation_without_an_out_is_apart_from_the_live_runs(
    in_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(f"simulate -p {in_work}/profile --requests 4".split()) == 0
    assert Run.load(Path("simulated/run")).info["kind"] == "simulated"
    assert [path.name for path in tmp_path.iterdir()] == ["simulated"]


@pytest.mark.parametrize("options", ["--out made", "--no-record", "--no-record --acceptance 0.5"])
def test_without_a_live_run_a_permutation_pair_accepts_what_it_would_live(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in an experiment, and the command says so."""
    monkeypatch.chdir(tmp_path)
    known = synthetic.profile()
    dataclasses.replace(known, info={**known.info, "pair": PAIR}).save(Path("profile"))
    assert main(f"simulate -p profile --requests 4 --prompt-tokens 20 --seed 3 {options}".split()) == 0
    said = "acceptance: closed form of the permutation pair; --acceptance takes another"
    assert (said in capsys.readouterr().out) == ("--acceptance" not in options)
    if "made" in options:
        run, spec = Run.load(Path("made")), parse_pair(PAIR)
        asked = make_workload(4, FixedLength(20), FixedLength(64), concurrency=4, seed=3)
        for request in permutation_prompts(asked, spec, seed=3).requests:
            assert run.tapes[request.id].tolist() == expected_tape(spec, request.prompt or (), 64).tolist()


def test_what_lies_beyond_the_profile_is_counted_and_printed(
    in_work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The models have 512 positions. The profile has prompts of up to 128 tokens, and contexts of up to 256."""
    rows = [(0, 20, 8), (1, 20, 8), (2, 400, 8), (3, 600, 8)]
    (tmp_path / "trace.csv").write_text(
        "timestamp,prompt_tokens,output_tokens\n" + "".join(f"{t},{p},{o}\n" for t, p, o in rows)
    )
    command = f"simulate -p profile --trace {tmp_path}/trace.csv --acceptance 0.8 --extrapolate --out {tmp_path}/out"

    def found(options: str) -> tuple[dict[str, int], str]:
        assert main(f"{command} {options}".split()) == 0
        return Run.load(tmp_path / "out").info["beyond_profile"], capsys.readouterr().out

    shorter, printed = found("--requests 2")
    assert (shorter["beyond"], shorter["requests"], shorter["too_long"]) == (0, 0, 0)
    assert re.search(r"beyond the profile +nothing", printed)
    cut, printed = found("")
    assert (cut["requests"], cut["too_long"]) == (1, 0)
    assert "1 rejected" in printed
    assert 0 < cut["tokens"] < cut["beyond"] < cut["segments"]
    assert cut["batch_size"] == cut["draft_length"] == 0
    whole, printed = found("--max-context 1000")
    assert (whole["requests"], whole["too_long"]) == (2, 1)
    assert "rejected" not in printed
    assert whole["tokens"] == 2 * cut["tokens"]
    words = f"{whole['beyond'] / whole['segments']:.1%} of the segments .* 2 of 4 requests; 1 requests are longer"
    assert re.search(words, " ".join(printed.split()))
    fleet, printed = found("--max-context 1000 --replicas 2")
    assert (fleet["requests"], fleet["too_long"], fleet["tokens"]) == (2, 1, whole["tokens"])
    command = command.replace(f"--out {tmp_path}/out", "--no-record")
    assert main(f"{command} --max-context 1000 --replicas 2".split()) == 0
    assert f"beyond the profile: {fleet['beyond'] / fleet['segments']:.1%} of the segments" in capsys.readouterr().out


def test_live_commands_without_torch_say_what_to_install(
    in_work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.runner.preflight.importlib.util.find_spec", lambda name: None)
    assert main(["run"]) == 2
    assert "pip install 'pdv[engines]'" in capsys.readouterr().err


def test_a_replay_pairs_with_its_live_run(in_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"simulate -p profile --replay live/pdv-r1 --out {tmp_path}/replay".split()) == 0
    replay, live = Run.load(tmp_path / "replay"), Run.load(Path("live/pdv-r1"))
    assert replay.info["replays"] == "pdv-r1"
    assert replay.info["workload"]["concurrency"] == live.info["workload"]["concurrency"] == 3
    assert replay.requests["output_tokens"].tolist() == live.requests["output_tokens"].tolist()
    assert main(f"compare live {tmp_path}/replay".split()) == 0
    assert "MAPE" in capsys.readouterr().out


def test_exit_code_1_when_the_tolerance_is_exceeded(in_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "live", "simulated", "--tolerance", "0.5"]) == 0
    assert main(["compare", "live", "simulated", "--tolerance", "0.001"]) == 1
    assert "pdv, concurrency 3, k 4" in capsys.readouterr().err


def test_settings_reach_the_record(in_work: Path, tmp_path: Path) -> None:
    command = "simulate -p profile -a pdv -c 2 -n 5 --prompt-tokens 20 --output-tokens 10-30 --batch-limit draft=2"
    assert main(f"{command} --slots 3 --permits 1 --hybrid 0 --no-jitter --out {tmp_path}/run".split()) == 0
    info = Run.load(tmp_path / "run").info
    assert info["architecture"]["slots"] == 3
    assert info["architecture"]["permits"] == 1
    assert info["architecture"]["hybrid_at_or_below"] == 0
    assert info["architecture"]["lanes"][0]["steps"]["draft"] == 2
    assert info["workload"]["concurrency"] == 2
    assert info["jitter"] is False
    assert info["name"] == "run"


def test_a_replay_takes_the_layout_and_the_seed_that_are_given(in_work: Path, tmp_path: Path) -> None:
    command = f"simulate -p profile --replay live/pdv-r1 --architecture pd --slots 2 --seed 9 --out {tmp_path}/run"
    assert main(command.split()) == 0
    run, live = Run.load(tmp_path / "run"), Run.load(Path("live/pdv-r1"))
    assert (run.info["architecture"]["name"], run.info["architecture"]["slots"], run.info["seed"]) == ("pd", 2, 9)
    assert run.requests["output_tokens"].tolist() == live.requests["output_tokens"].tolist()


def test_a_trace_takes_the_temperature_and_the_seed_that_are_given(in_work: Path, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("timestamp,prompt_tokens,output_tokens\n0,20,9\n0.5,30,8\n")
    command = f"simulate -p profile --trace {tmp_path}/trace.csv --temperature 0.5 --seed 4 --out {tmp_path}/run"
    assert main(command.split()) == 0
    info = Run.load(tmp_path / "run").info
    assert (info["workload"]["temperature"], info["workload"]["seed"], info["seed"]) == (0.5, 4, 4)


@pytest.mark.parametrize(
    ("acceptance", "expected"),
    [
        ("0.8", {"source": "independent", "alpha": 0.8}),
        ("0.8,0.6", {"source": "per position", "rates": [0.8, 0.6]}),
        ("0.7+-0.1", {"source": "per-request spread", "mean": 0.7, "sd": 0.1}),
    ],
)
def test_acceptance_can_be_given(acceptance: str, expected: dict, in_work: Path, tmp_path: Path) -> None:
    assert main(f"simulate -p profile -n 4 --acceptance {acceptance} --out {tmp_path}/run".split()) == 0
    assert Run.load(tmp_path / "run").info["acceptance"] == expected


@pytest.mark.parametrize(
    "command",
    [
        "",
        *["run", "calibrate", "simulate", "compare", "figures", "trace", "report", "experiment", "sweep", "search"],
        *["bench", "demo"],
        *[f"check {part}" for part in ("graphs", "kernels", "products", "soak", "caches", "families")],
        "profile-kernels",
        "train-pair",
    ],
    ids=lambda c: c or "pdv",
)
def test_help_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"] if command else []) == 0
    text = capsys.readouterr().out
    assert "Usage" in text
    assert not command or f"Example: pdv {command}" in " ".join(text.split())
    assert not re.search(r"\w \.\s", text)  # what remains of a default that was taken for markup
