"""The command line: bad input gets one line on standard error and exit code 2."""

from __future__ import annotations

import dataclasses
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
BAD_WORKLOAD = {
    "unknown architecture": ("--architecture pvd", "architecture = 'pvd'"),
    "architecture file missing": ("--architecture nowhere.toml", "architecture = 'nowhere.toml'"),
    "negative rate": ("--rate -2", "rate = -2.0"),
    "rate zero": ("--rate 0", "rate = 0.0"),
    "rate not a number": ("--rate nan", "rate = nan"),
    "no clients": ("--concurrency 0", "concurrency = 0"),
    "two loads": ("--rate 2 --concurrency 3", "concurrency, rate = "),
    "k from 0": ("--draft-length 0-4", "draft_length = '0-4'"),
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
    "not a number": ("--concurrency many", "concurrency = 'many': use a whole number"),
    "rate of letters": ("--rate often", "rate = 'often': use a number"),
    "no such option": ("--clients 3", "--clients"),
}


BAD_LIVE = {
    "no such device kind": ("--device tpu", "device = 'tpu'"),
    "device number beyond what torch can read": ("--device cuda:999999999999", "device = 'cuda:999999999999'"),
    "CUDA on this machine": ("--device cuda:77", "device = 'cuda:77'"),
    "model folder missing": ("--pair ./nowhere", "pair = './nowhere'"),
    "target folder missing": ("--target ./nowhere --draft ./nowhere", "target = './nowhere'"),
    "reserve below zero": ("--reserve-gib -1", "reserve_gib = -1.0"),
    "nothing to weigh": ("--draft-length load0-8", "profile = None: draft length load0-8 weighs measured costs"),
    "a profile that nothing weighs": ("--profile profile", "profile = 'profile': only a draft length that follows"),
    "weighing another pair": (
        "--draft-length load2-8 --profile profile",
        "profile = 'profile': it is of 'made-up pair'",
    ),
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
    "acceptance length below 1": ("--profile profile --acceptance length=0.9,k=4", "acceptance length = 0.9: a step"),
    "acceptance length above k + 1": (
        "--profile profile --acceptance length=5.2,k=4",
        "acceptance length = 5.2: a step",
    ),
    "acceptance length without drafts": ("--profile profile --acceptance length=1,k=0", "acceptance k = 0"),
    "masks missing": ("--profile profile --acceptance nowhere.jsonl", "acceptance = 'nowhere.jsonl'"),
    "bad mask": ("--profile profile --acceptance bad.jsonl", "bad.jsonl, line 2 bits.1 = 2"),
    "masks too short": (
        "--profile profile --acceptance masks.jsonl -n 2 --output-tokens 4",
        "acceptance = 'masks.jsonl': request 1 asks for 4 output tokens and its mask has 3",
    ),
    "masks of fewer requests": (
        "--profile profile --acceptance masks.jsonl --output-tokens 3",
        "acceptance = 'masks.jsonl': no mask of request 2; add its line",
    ),
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
    "no replicas": ("--profile profile --replicas 0", "replicas = 0: use a whole number of at least 1"),
    "too many replicas": ("--profile profile --replicas 1001", "replicas = 1001: use 1000 or fewer"),
    "unknown router": ("--profile profile --replicas 2 --router random", "router = 'random': use round-robin, least"),
    "router of one replica": (
        "--profile profile --router least-loaded",
        "router = 'least-loaded': one replica needs",
    ),
    "router of one replica, given": ("--profile profile --replicas 1 --router round-robin", "router = 'round-robin'"),
    "replicas of a replay": ("--profile profile --replay live/pdv-r1 --replicas 2", "replicas = '2': a replay"),
    "metrics of a replay": ("--profile profile --replay live/pdv-r1 --metrics x.csv", "metrics = 'x.csv': a replay"),
    "context of a replay": (
        "--profile profile --replay live/pdv-r1 --max-context 99",
        "max_context = '99': a replay",
    ),
    "a place for no record": ("--profile profile --no-record --out made", "out = 'made': --no-record saves nothing"),
    "replay without a record": ("--profile profile --replay live/pdv-r1 --no-record", "no_record = True: a replay"),
    "metrics over another table": (
        "--profile profile --metrics trace.csv",
        "metrics = 'trace.csv': this file was not",
    ),
    "metrics in a folder": ("--profile profile --metrics live", "metrics = 'live'"),
    "context that the models lack": ("--profile profile --max-context 600", "max_context = 600: use 2 to 507"),
    "context of one token": (
        "--profile profile --extrapolate --max-context 1",
        "max_context = 1: use a whole number",
    ),
}


BAD_OTHERS = {
    "unknown command": ("simulation", "simulation"),
    "unknown option": ("trace live/pdv-r1 --foo", "(see pdv trace --help)"),
    "unknown configuration": (
        "sweep nothing --out x",
        "config = 'nothing': no such file; give a TOML file, or one of",
    ),
    "unknown experiment": ("experiment nothing --out x", "or one of ablations, adaptive-high"),
    "live missing": ("compare nowhere simulated", "live = 'nowhere'"),
    "simulated empty": ("compare live profile", "simulated = 'profile'"),
    "simulated not named": ("compare live", "experiment = 'live': not the folder of an experiment"),
    "figures of no experiment": ("figures profile", "experiment = 'profile': not the folder of an experiment"),
    "experiment nowhere to compare": ("compare nowhere", "experiment = 'nowhere': not the folder of an experiment"),
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
    "experiment with masks too short": ("experiment masked.toml --out swept", "masks.jsonl': request 1 asks for 11"),
    "sweep with masks too short": ("sweep swept.toml --out swept", "masks.jsonl': request 1 asks for 9"),
    "sweep with a bad mask": ("sweep bad_mask.toml --out swept", "bad.jsonl, line 2 bits.1 = 2"),
    "sweep with rates that rise": ("sweep rising.toml --out swept", "acceptance = '0.5,0.6'"),
    "sweep with a length above k + 1": ("sweep long.toml --out swept", "acceptance length = 6.0: a step of k = 4"),
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
    "no half of an experiment": ("experiment taped.toml --out x --only foo", "only = 'foo': use live, simulated"),
    "sweep on no backend": ("sweep swept.toml --out x --backend foo", "backend = 'foo': use processes, ray"),
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
    (work / "masked.toml").write_text("\n".join(taped).replace('"tape"', '"masks.jsonl"'))
    (work / "masks.jsonl").write_text('{"request": 0, "bits": [-1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1]}\n'
                                      '{"request": 1, "bits": [-1, 1, 0]}\n')  # fmt: skip
    (work / "bad.jsonl").write_text('{"request": 0, "bits": [-1, 1]}\n{"request": 1, "bits": [0, 2]}\n')
    sweeps = {"swept": "masks.jsonl", "bad_mask": "bad.jsonl", "rising": "0.5,0.6", "long": "length=6.0,k=4"}
    for name, acceptance in sweeps.items():
        lines = ['profile = "profile"', 'architectures = ["pd"]', "concurrencies = [1]", "[workload]", "requests = 2"]
        lines += ['output_tokens = "9"', "[grid]", f'acceptance = ["{acceptance}"]']
        (work / f"{name}.toml").write_text("\n".join(lines))
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
