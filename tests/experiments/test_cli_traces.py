"""Traces on the command line: read, or refused in one line that names the file, the line and the reason."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.record.run import Run
from experiments.cli import main

HEADER = "timestamp,prompt_tokens,output_tokens\n"
ROWS = ["0.5,20,4", "0.75,30,6", "1.5,10,2"]
CSV = HEADER + "\n".join(ROWS) + "\n"
JSON = "".join(
    '{{"timestamp": {}, "prompt_tokens": {}, "output_tokens": {}}}\n'.format(*row.split(",")) for row in ROWS
)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{2 + float(row.split(',')[0]):010.7f},{row.split(',', 1)[1]}\n" for row in ROWS
)
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "".join(
    f"{at},GPT-4,{prompt},{output},0,API log\n" for at, prompt, output in (row.split(",") for row in ROWS)
)
MOONCAKE = "".join(
    f'{{"timestamp": {1000 * float(at)}, "input_length": {prompt}, "output_length": {output}, "hash_ids": [1]}}\n'
    for at, prompt, output in (row.split(",") for row in ROWS)
)
SERVED = [(0.0, 20, 4), (0.25, 30, 6), (1.0, 10, 2)]  # from the first arrival on

READ: dict[str, str | bytes] = {
    "csv": CSV,
    "json lines": JSON,
    "azure": AZURE,
    "burstgpt": BURSTGPT,
    "mooncake": MOONCAKE,
    "unsorted": HEADER + "\n".join(ROWS[::-1]),
    "unsorted json": "".join(JSON.splitlines(keepends=True)[::-1]),
    "gzip": gzip.compress(CSV.encode()),
    "gzipped json": gzip.compress(JSON.encode()),
    "gzip in two parts": gzip.compress(CSV[:60].encode()) + gzip.compress(CSV[60:].encode()),
    "windows": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(),
    "blank lines": "\n\n" + CSV.replace("\n", "\n\n"),
    "numbers as text": JSON.replace("20", '"20"').replace("0.75", '"0.75"'),
    "whole numbers as decimals": CSV.replace(",20,", ",2e1,").replace(",6", ",6.0"),
    "columns in another order": "output_tokens,name,timestamp,prompt_tokens\n4,ä,0.5,20\n6,b,0.75,30\n2,c,1.5,10\n",
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_what_can_be_read_is_served(content: str | bytes, in_work: Path, tmp_path: Path) -> None:
    _write(tmp_path / "trace", content)
    command = f"simulate -p profile --trace {tmp_path}/trace --acceptance 0.8 --out {tmp_path}/run"
    assert main(command.split()) == 0
    requests = Run.load(tmp_path / "run").requests
    assert [tuple(row) for row in requests[["arrival_s", "prompt_tokens", "output_tokens"]].to_numpy()] == SERVED
    assert (requests["status"] == "finished").all()


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "trace' = the file is empty"),
    "empty gzip": (gzip.compress(b""), "trace' = the file is empty"),
    "blank": ("\n \n\n", "trace' = the file is empty"),
    "header alone": (HEADER, "trace' = it contains no usable request"),
    "header missing": ("\n".join(ROWS), "line 1 = '0.5, 20, 4': unknown format; known: azure"),
    "column missing": (CSV.replace("output_", ""), "line 1 = 'timestamp, prompt_tokens, tokens': column output_"),
    "column twice": (CSV.replace("output_", "prompt_"), "line 1 = 'timestamp, prompt_tokens, prompt_tokens': dup"),
    "key missing": (JSON.replace('"prompt_tokens": 30, ', ""), "line 2, prompt_tokens = None: the value is missing"),
    "key twice": (JSON.replace('"output_tokens": 6', '"timestamp": 6'), "line 2 = '{\"timestamp\": 0.75,"),
    "null": (JSON.replace("30", "null"), "line 2, prompt_tokens = None: the value is missing"),
    "value missing": (CSV.replace(",6", ""), "line 3, output_tokens = None: the value is missing"),
    "value empty": (CSV.replace(",6", ","), "line 3, output_tokens = '': use a whole number"),
    "value too many": (CSV.replace(",6", ",6,7"), "line 3 = '4 values': there are 3 columns"),
    "json cut": (JSON[:-20], "line 3 = "),
    "json of a list": (JSON + "[1, 2, 3]", "line 4 = '[1, 2, 3]': write one JSON object per line"),
    "quote open": (CSV + '"2,20,4\n', "line 5 = 'unreadable': not valid CSV"),
    "words": (CSV.replace("30", "thirty"), "line 3, prompt_tokens = 'thirty': use a whole number"),
    "fraction of a token": (CSV.replace("30", "30.5"), "line 3, prompt_tokens = '30.5': use a whole number"),
    "no tokens": (CSV.replace(",30,", ",0,"), "line 3, prompt_tokens = '0': use a whole number"),
    "negative tokens": (CSV.replace(",30,", ",-30,"), "line 3, prompt_tokens = '-30': use a whole number"),
    "negative output": (JSON.replace(": 6", ": -6"), "line 2, output_tokens = -6: use a whole number"),
    "negative time": (CSV.replace("0.75", "-0.75"), "line 3, timestamp = '-0.75': not a valid time"),
    "NaN time": (JSON.replace("0.75", "NaN"), "line 2, timestamp = nan: not a valid time"),
    "NaN tokens": (CSV.replace("30", "nan"), "line 3, prompt_tokens = 'nan': use a whole number"),
    "infinite time": (CSV.replace("0.75", "inf"), "line 3, timestamp = 'inf': not a valid time"),
    "infinite tokens": (JSON.replace("30", "Infinity"), "line 2, prompt_tokens = inf: use a whole number"),
    "huge time": (CSV.replace("0.75", "1e10"), "line 3, timestamp = '1e10': not a valid time"),
    "huge tokens": (CSV.replace("30", "30000000"), "line 3, prompt_tokens = '30000000': use a whole number"),
    "number of 400 digits": (JSON.replace("30", "3" * 400), "line 2, prompt_tokens = 3333"),
    "number of 5,000 digits": (JSON.replace("30", "3" * 5000), "line 2 = "),
    "date that is none": (AZURE.replace("2023-11-16", "2023-02-30", 1), "line 2, TIMESTAMP = '2023-02-30 "),
    "huge line": (CSV + "1" * 1_000_001, "line 5 = '1111"),
    "binary": (b"PAR1\x15\x04\x15\x90\x00\xff", "line 1 = 'PAR1"),
    "binary later": (CSV.encode() + b"2,\xff\xfe,3\n", "line 5 = "),
    "utf-16": (CSV.encode("utf-16"), "line 1 = "),
    "gzip cut": (gzip.compress(CSV.encode())[:-9], "= 'unreadable': cannot decompress the file further"),
    "gzip damaged": (gzip.compress(CSV.encode())[:20] + b"\xff" * 30, "cannot decompress the file further"),
    "too long for the models": (CSV.replace(",20,", ",900,").replace(",30,", ",900,").replace(",10,", ",900,"),
                                "max_context = 507: no prompt fits; the shortest has 900 tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused(
    content: str | bytes, message: str, in_work: Path, tmp_path: Path, refusal: Callable[[str], str]
) -> None:
    _write(tmp_path / "trace", content)
    line = refusal(f"simulate -p profile --trace {tmp_path}/trace --acceptance 0.8 --out {tmp_path}/run")
    said = line.replace(f"trace = '{tmp_path}/trace': ", "trace' = ")
    assert message in said, line
    assert said.startswith(("trace trace, line ", "trace' = ", "max_context = ")), line
    assert len(line) < 500
    assert not (tmp_path / "run").exists()


def test_of_a_huge_trace_the_first_requests_can_be_served(in_work: Path, tmp_path: Path) -> None:
    """By arrival, not by line; what follows them is checked all the same."""
    later = "".join(f"{1000 + number},20,4\n" for number in range(200_000))
    (tmp_path / "trace").write_bytes(gzip.compress((HEADER + later + "\n".join(ROWS)).encode(), 1))
    command = f"simulate -p profile --trace {tmp_path}/trace --requests 3 --acceptance 0.8 --out {tmp_path}/run"
    assert main(command.split()) == 0
    assert Run.load(tmp_path / "run").requests["prompt_tokens"].tolist() == [20, 30, 10]
    (tmp_path / "trace").write_bytes(gzip.compress((HEADER + "\n".join(ROWS) + "\n" + later + "x").encode(), 1))
    assert main(command.split()) == 2


def test_prompts_that_the_models_have_no_room_for_are_rejected_one_by_one(
    in_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "trace", CSV.replace(",30,", ",9000000,"))
    command = f"simulate -p profile --trace {tmp_path}/trace --acceptance 0.8 --out {tmp_path}/run"
    assert main(command.split()) == 0
    assert "2 of 3 requests" in capsys.readouterr().out
    rejected = Run.load(tmp_path / "run").requests.loc[1]
    assert (rejected["status"], rejected["prompt_tokens"]) == ("rejected", 9_000_000)
    assert "the context limit of 507 leaves no room" in rejected["error"]


@pytest.mark.parametrize("command", ["sweep", "experiment"])
def test_the_trace_of_a_configuration_is_refused_alike(
    command: str, in_work: Path, tmp_path: Path, refusal: Callable[[str], str]
) -> None:
    _write(tmp_path / "trace.csv", CSV.replace("0.75", "-0.75"))
    settings = {
        "sweep": '[grid]\ntrace = ["trace.csv"]\n',
        "experiment": '[workload]\ntrace = "trace.csv"\n',
    }
    shared = f'profile = "{in_work}/profile"\narchitectures = ["pd"]\nacceptance = "0.8"\n'
    mode = 'mode = "simulated"\n' if command == "experiment" else ""
    _write(tmp_path / "config.toml", mode + shared + settings[command])
    line = refusal(f"{command} {tmp_path}/config.toml --out {tmp_path}/out")
    assert "trace trace.csv, line 3, timestamp = '-0.75': not a valid time" in line
    assert not (tmp_path / "out").exists()


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
