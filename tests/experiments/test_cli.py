"""The command line: good input works, bad input gets one line on standard error and exit code 2."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.record.run import Run
from experiments.cli import main
from tests.experiments import synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile, live runs and simulated ones."""
    folder = tmp_path_factory.mktemp("work")
    synthetic.profile().save(folder / "profile")
    for repeat in (1, 2):
        synthetic.live("pdv", f"pdv-r{repeat}", seed=repeat).save(folder / "live" / f"pdv-r{repeat}")
    synthetic.simulated("pdv", name="pdv").save(folder / "simulated" / "pdv")
    return folder


@pytest.fixture
def in_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


BAD_WORKLOAD = {
    "unknown architecture": ("--architecture pvd", "architecture = 'pvd'"),
    "architecture file missing": ("--architecture nowhere.toml", "architecture = 'nowhere.toml'"),
    "negative rate": ("--rate -2", "rate = -2.0"),
    "rate zero": ("--rate 0", "rate = 0.0"),
    "rate not a number": ("--rate nan", "rate = nan"),
    "no clients": ("--concurrency 0", "concurrency = 0"),
    "two loads": ("--rate 2 --concurrency 3", "concurrency, rate = "),
    "k = 0": ("--draft-length 0", "draft_length = '0'"),
    "k backwards": ("--draft-length 8-2", "draft_length = '8-2'"),
    "no such step": ("--batch-limit decode=3", "batch_limit = 'decode=3'"),
    "step of another architecture": ("--architecture pd --batch-limit verify=3", "batch_limit = 'verify'"),
    "no workers": ("--architecture baseline --workers 0", "lanes.worker.workers = 0"),
    "no slots": ("--slots 0", "slots = 0"),
    "slots not a number": ("--slots many", "slots = 'many'"),
    "no permits": ("--permits 0", "permits = 0"),
    "hybrid below zero": ("--hybrid -1", "hybrid_at_or_below = -1"),
    "no requests": ("--requests 0", "requests = 0"),
    "no prompt": ("--prompt-tokens 0", "prompt_tokens = '0'"),
    "lengths backwards": ("--output-tokens 96-16", "output_tokens = '96-16'"),
    "cold": ("--temperature -1", "temperature = -1.0"),
    "seed below zero": ("--seed -1", "seed = -1"),
    "seed beyond what torch takes": ("--seed 9223372036854775808", "seed = 9223372036854775808"),
    "unknown process": ("--process normal --rate 2", "process = 'normal'"),
    "more requests than a trace has": ("--trace trace.csv -n 3", "requests = 3: the trace has 2 requests"),
    "trace missing": ("--trace nowhere.csv", "trace = 'nowhere.csv'"),
    "trace without a column": ("--trace no_column.csv", "GeneratedTokens"),
    "cut without a trace": ("--max-prompt 10", "max_prompt = 10"),
    "process of a closed loop": ("--concurrency 3 --process poisson", "process = 'poisson'"),
    "process of the loop that is closed by default": ("--process fixed", "process = 'fixed'"),
    "cv of a closed loop": ("--concurrency 3 --cv 2", "cv = 2.0"),
    "process of a trace": ("--trace trace.csv --process fixed", "process = 'fixed'"),
    "cv of a trace": ("--trace trace.csv --cv 2", "cv = 2.0"),
    "prompts of a trace": ("--trace trace.csv --prompt-tokens 64", "prompt_tokens = '64'"),
    "outputs of a trace": ("--trace trace.csv --output-tokens 9", "output_tokens = '9'"),
    "out is a file": ("--out no_column.csv/deep", "out = 'no_column.csv/deep'"),
    "out cannot be written": ("--out /proc/nope/x", "out = '/proc/nope/x': cannot write to /proc"),
    "not a number": ("--concurrency many", "--concurrency"),
    "no such option": ("--clients 3", "--clients"),
}
BAD_LIVE = {
    "no such device kind": ("--device tpu", "device = 'tpu'"),
    "device number beyond what torch can read": ("--device cuda:999999999999", "device = 'cuda:999999999999'"),
    "CUDA on this machine": ("--device cuda:77", "device = 'cuda:77'"),
    "model folder missing": ("--pair ./nowhere", "pair = './nowhere'"),
    "target folder missing": ("--target ./nowhere --draft ./nowhere", "target = './nowhere'"),
    "reserve below zero": ("--reserve-gib -1", "reserve_gib = -1.0"),
    "half a pair": ("--target ./nowhere", "target, draft = "),
}
BAD_SIMULATION = {
    "profile missing": ("--profile nowhere", "nowhere"),
    "other schema": ("--profile other_schema", "schema_version = 99"),
    "truncated table": ("--profile truncated", "stage_costs.csv"),
    "cut in a line": ("--profile cut", "stage_costs.csv"),
    "table missing": ("--profile no_table", "contention.csv"),
    "acceptance of no kind": ("--profile profile --acceptance often", "acceptance = 'often'"),
    "acceptance above 1": ("--profile profile --acceptance 1.2", "acceptance = '1.2'"),
    "rising rates": ("--profile profile --acceptance 0.5,0.6", "acceptance = '0.5,0.6'"),
    "impossible spread": ("--profile profile --acceptance 0.5±0.9", "0.9"),
    "tape of the profile too short": (
        "--profile taped --acceptance tape -n 2 --output-tokens 11",
        "acceptance = 'tape': request 0 asks for 11 output tokens and its tape has 10",
    ),
    "tape of fewer requests": (
        "--profile taped --acceptance tape --output-tokens 9",
        "acceptance = 'tape': no tape of request 2",
    ),
    "tape without one": ("--profile profile --acceptance tape", "acceptance = 'tape'"),
    "k that was not measured": ("--profile profile --draft-length 7", "draft_length = 7"),
    "replay missing": ("--profile profile --replay nowhere", "nowhere"),
    "replay without an architecture": ("--profile profile --replay no_architecture", "architecture = None"),
    "replay with a load": ("--profile profile --replay live/pdv-r1 --rate 3", "rate = 3.0"),
    **{
        f"replay with {option}": (f"--profile profile --replay live/pdv-r1 --{option} {value}", f"{name} = ")
        for option, name, value in (
            ("process", "process", "gamma"),
            ("cv", "cv", "2"),
            ("trace", "trace", "trace.csv"),
            ("max-prompt", "max_prompt", "9"),
            ("max-output", "max_output", "9"),
            ("requests", "requests", "5"),
            ("prompt-tokens", "prompt_tokens", "64"),
            ("output-tokens", "output_tokens", "64"),
            ("temperature", "temperature", "0"),
            ("seed", "seed", "-1"),
            ("architecture", "architecture", "pvd"),
        )
    },
    "replay of a simulated run": ("--profile profile --replay simulated/pdv", "replay = 'pdv': "),
    "slots of no device": ("--profile profile --slots auto", "slots = 'auto': a simulation has no device"),
    "replay's slots of no device": ("--profile profile --replay live/pdv-r1 --slots auto", "slots = 'auto'"),
    "no prompt fits": ("--profile profile -n 2 --prompt-tokens 600", "max_context = 507: no prompt fits"),
    "no profile": ("", "--profile"),
}
BAD_OTHERS = {
    "unknown command": ("simulation", "simulation"),
    "live missing": ("compare nowhere simulated", "live = 'nowhere'"),
    "simulated empty": ("compare live profile", "simulated = 'profile'"),
    "simulated not named": ("compare live", "experiment = 'live': no experiment is there"),
    "figures of no experiment": ("figures profile", "experiment = 'profile': no experiment is there"),
    "experiment nowhere to compare": ("compare nowhere", "experiment = 'nowhere': no experiment is there"),
    "experiment without its table": ("compare begun", "begun/cells.csv"),
    "cells of two folders": ("compare live simulated --only pdv-*", "only = 'pdv-*'"),
    "table is a folder": ("compare live simulated --out live", "out = 'live'"),
    "table cannot be written": ("compare live simulated --out /proc/nope/x.csv", "out = '/proc/nope'"),
    "trace file is a folder": ("trace live/pdv-r1 --out live", "out = 'live'"),
    "sides swapped": ("compare simulated live", "live = 'pdv': the record has kind = 'simulated'"),
    "simulated on both sides": ("compare simulated simulated", "live = 'pdv'"),
    "live on both sides": ("compare live live", "simulated = 'pdv-r1'"),
    "profile of another device": ("compare live simulated --profile elsewhere", "profile device = 'another device'"),
    "figures with sides swapped": ("figures simulated live", "live = 'pdv'"),
    "figures of another device": ("figures live simulated --profile elsewhere", "profile device = 'another device'"),
    "experiment with tapes too short": (
        "experiment taped.toml --out swept",
        "acceptance = 'tape': request 0 asks for 11 output tokens and its tape has 10",
    ),
    "tolerance below zero": ("compare live simulated --tolerance -1", "tolerance = -1.0"),
    "figures of nothing": ("figures nowhere simulated", "live = 'nowhere'"),
    "trace of nothing": ("trace nowhere", "nowhere"),
    "damaged run": ("trace damaged", "requests.parquet"),
    "calibrate nothing": ("calibrate --batches 0,1", "batches = '0,1'"),
    "no time": ("calibrate --budget-s 0", "budget_s = 0.0"),
    "calibrate nowhere": ("calibrate --pair ./nowhere", "pair = './nowhere'"),
    "experiment nowhere": ("experiment nowhere.toml --out x", "config = 'nowhere.toml'"),
    "bad config": ("experiment bad.toml --out x", "concurrencies"),
    "experiment without jobs": ("experiment demo --out x --jobs 0", "jobs = 0"),
    "experiment without time": ("experiment demo --out x --budget-s 0", "budget_s = 0.0"),
    "profile of another pair": ("experiment demo --out x --profile profile", "pair = 'embedded': the profile is of"),
    "half of an experiment that it is not": ("experiment taped.toml --out x --only live", "only = 'live'"),
    "no value": ("simulate --profile profile --out=", "out = ''"),
}
CASES = [
    *((f"run: {name}", f"run {case[0]}", case[1]) for name, case in (BAD_WORKLOAD | BAD_LIVE).items()),
    *((f"simulate: {name}", f"simulate --profile profile {c[0]}", c[1]) for name, c in BAD_WORKLOAD.items()),
    *((f"simulate: {name}", f"simulate {case[0]}", case[1]) for name, case in BAD_SIMULATION.items()),
    *((name, *case) for name, case in BAD_OTHERS.items()),
]


@pytest.fixture(scope="module", autouse=True)
def bad_files(work: Path) -> None:
    """The broken inputs that the cases name."""
    (work / "no_column.csv").write_text("TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.97,48\n")
    (work / "trace.csv").write_text("timestamp,prompt_tokens,output_tokens\n0,20,9\n0.5,30,8\n")
    (work / "bad.toml").write_text('architectures = ["pd"]\nconcurrencies = [0]\n')
    taped = ['mode = "simulated"', 'profile = "taped"', 'acceptance = "tape"', 'architectures = ["pd"]']
    taped += ["concurrencies = [1]", "[workload]", "requests = 2", 'output_tokens = "11"']
    (work / "begun").mkdir()
    (work / "begun" / "experiment.toml").write_text('architectures = ["pd"]\n')
    (work / "taped.toml").write_text("\n".join(taped))
    made = synthetic.profile()
    tapes = {request: np.array([-1, *[1] * 9], dtype=np.int8) for request in (0, 1)}
    dataclasses.replace(made, tapes=tapes).save(work / "taped")
    dataclasses.replace(made, info={**made.info, "device": "another device"}).save(work / "elsewhere")
    for name in ("other_schema", "truncated", "cut", "no_table"):
        shutil.copytree(work / "profile", work / name)
    toml = work / "other_schema" / "profile.toml"
    toml.write_text(toml.read_text().replace("schema_version = 4", "schema_version = 99"))
    lines = (work / "truncated" / "stage_costs.csv").read_text().splitlines(keepends=True)
    (work / "truncated" / "stage_costs.csv").write_text("".join(lines[:-4]))
    (work / "cut" / "stage_costs.csv").write_text("".join(lines)[:-10])
    (work / "no_table" / "contention.csv").unlink()
    shutil.copytree(work / "live" / "pdv-r1", work / "damaged")
    (work / "damaged" / "requests.parquet").write_bytes(b"not a table")
    run = Run.load(work / "live" / "pdv-r1")
    del run.info["architecture"]
    run.save(work / "no_architecture")


@pytest.mark.parametrize(("command", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_gets_one_line_and_exit_code_2(
    command: str, expected: str, in_work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(in_work.rglob("*"))
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("pdv: ")
    assert expected in lines[0]
    assert printed.out == ""
    assert sorted(in_work.rglob("*")) == before  # nothing was begun


def test_the_installed_process_prints_no_traceback(work: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "simulate", "--profile", str(work / "other_schema")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "schema_version = 99" in done.stderr


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


def test_simulating_comparing_drawing_and_tracing_need_no_torch(work: Path, tmp_path: Path) -> None:
    commands = [
        f"simulate -p {work}/profile -c 3 --requests 6 --out {tmp_path}/simulated",
        f"simulate -p {work}/profile --replay {work}/live/pdv-r1 --out {tmp_path}/replay",
        f"compare {work}/live {work}/simulated --profile {work}/profile --out {tmp_path}/comparison.csv",
        f"figures {work}/live {work}/simulated --profile {work}/profile --out {tmp_path}/figures",
        f"trace {work}/simulated/pdv --out {tmp_path}/trace.json",
    ]
    script = NO_TORCH.format(commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figures" / "load.pdf").stat().st_size > 1000


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
    command = f"simulate -p profile --trace trace.csv --temperature 0.5 --seed 4 --out {tmp_path}/run"
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
        *["run", "calibrate", "simulate", "compare", "figures", "trace", "experiment", "bench", "demo"],
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
