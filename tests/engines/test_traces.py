"""Traces of other systems, and what is wrong with the bad ones."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest

from engines.errors import InputError
from engines.workload.traces import read_trace
from engines.workload.workload import Workload

SHARED = Path(__file__).parents[2].parent / "shared" / "traces"

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 3500, "input_length": 7319, "output_length": 490, "hash_ids": [0, 14]}
"""
GENERIC = """{"timestamp": 0.25, "prompt_tokens": 374, "output_tokens": 44}

{"timestamp": 1.5, "prompt_tokens": 396, "output_tokens": 109}
"""
GENERIC_CSV = """timestamp,prompt_tokens,output_tokens
0.25,374,44
1.5,396,109
"""


def _read(tmp_path: Path, text: str | bytes, **limits: int) -> Workload:
    path = tmp_path / "trace.txt"  # formats are told apart by content, not by name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_trace(path, **limits)


def _rows(workload: Workload) -> list[tuple[int, int, int, float | None]]:
    return [(r.id, r.prompt_tokens, r.max_tokens, r.arrival_s) for r in workload.requests]


@pytest.mark.parametrize(
    ("text", "form", "rows"),
    [
        (AZURE, "azure", [(0, 4808, 10, 0.0), (1, 3180, 8, 0.052)]),
        (MOONCAKE, "mooncake", [(0, 6758, 500, 0.0), (1, 7319, 490, 2.5)]),
        (GENERIC, "generic", [(0, 374, 44, 0.0), (1, 396, 109, 1.25)]),
        (GENERIC_CSV, "generic", [(0, 374, 44, 0.0), (1, 396, 109, 1.25)]),
        (BURSTGPT, "burstgpt", [(0, 472, 18, 0.0), (1, 417, 276, 113.0)]),
    ],
)
def test_every_format_is_read_with_its_first_arrival_at_zero(
    tmp_path: Path, text: str, form: str, rows: list[tuple[int, int, int, float]]
) -> None:
    workload = _read(tmp_path, text)
    assert _rows(workload) == rows
    assert workload.info["format"] == form
    assert workload.info["trace"] == "trace.txt"


def test_failed_responses_are_left_out_and_counted(tmp_path: Path) -> None:
    assert _read(tmp_path, BURSTGPT).info["failed_left_out"] == 1
    assert "failed_left_out" not in _read(tmp_path, GENERIC).info


def test_rows_out_of_order_are_sorted_and_ids_follow_the_arrivals(tmp_path: Path) -> None:
    lines = GENERIC.split("\n")
    assert _read(tmp_path, "\n".join(lines[::-1])).requests == _read(tmp_path, GENERIC).requests


def test_a_limit_keeps_the_earliest_and_caps_cut_lengths(tmp_path: Path) -> None:
    assert _rows(_read(tmp_path, "\n".join(MOONCAKE.split("\n")[::-1]), limit=1)) == [(0, 6758, 500, 0.0)]
    assert _rows(_read(tmp_path, AZURE, max_prompt=4000, max_output=9)) == [(0, 4000, 9, 0.0), (1, 3180, 8, 0.052)]


def test_dates_may_carry_a_zone_and_files_a_byte_order_mark(tmp_path: Path) -> None:
    zoned = AZURE.replace("600,", "600+00:00,")
    assert _rows(_read(tmp_path, "\ufeff" + zoned)) == _rows(_read(tmp_path, AZURE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (b"PAR1\x00\xff\xfe", "line 1 = .*: the line contains a NUL, so it is not text"),
        (AZURE.split("\n")[0], "no usable request"),
        (BURSTGPT.replace(",18,", ",0,").replace(",276,", ",0,"), "no usable request"),
        ("time,tokens\n1,2\n", "line 1 = 'time, tokens': unknown format; known: azure"),
        ('{"timestamp": 3}\n', "line 1 = 'timestamp': unknown format; known: azure"),
        (
            AZURE.replace("GeneratedTokens", "Generated"),
            "line 1 = .*: column GeneratedTokens is missing; the azure format needs",
        ),
        (
            BURSTGPT.replace("Timestamp", "Time"),
            "line 1 = .*: column Timestamp is missing; the burstgpt format needs",
        ),
        (
            GENERIC_CSV.replace("output_", "out_"),
            "line 1 = .*: column output_tokens is missing; the generic format needs",
        ),
        (
            MOONCAKE.replace("output_length", "length"),
            "line 1 = .*: column output_length is missing; the mooncake format needs",
        ),
        (GENERIC + '{"timestamp": 2, "prompt_tokens": 5}', r"line 4, output_tokens = None: the value is missing"),
        (AZURE + "2023-11-16 18:17:05,7\n", r"line 4, GeneratedTokens = None: the value is missing"),
        (AZURE + "2023-11-16 18:17:05,7,\n", r"line 4, GeneratedTokens = '': use a whole number"),
        (AZURE.replace(",10", ",ten"), r"line 2, GeneratedTokens = 'ten': use a whole number"),
        (AZURE.replace(",3180", ",-1"), r"line 3, ContextTokens = '-1': use a whole number of tokens, at least 1"),
        (AZURE.replace(",8", ",0"), r"line 3, GeneratedTokens = '0': use a whole number of tokens, at least 1"),
        (AZURE.replace("2023-11-16 18:17:04", "yesterday"), r"TIMESTAMP = 'yesterday.0319600': not a valid time"),
        (AZURE + '"2023\n', r"line 4 = 'unreadable': not valid CSV"),
        (GENERIC.replace("1.5", "-1.5"), r"line 3, timestamp = -1.5: not a valid time"),
        (GENERIC.replace("1.5", "NaN"), r"line 3, timestamp = nan: not a valid time"),
        (GENERIC.replace("1.5", "[]"), r"line 3, timestamp = \[\]: not a valid time"),
        (GENERIC.replace("1.5", "true"), r"line 3, timestamp = True: not a valid time"),
        (GENERIC.replace("1.5", "1e300"), r"line 3, timestamp = 1e\+300: not a valid time .* from 0 to 4e\+09 s"),
        (GENERIC.replace("1.5", "1e999"), r"line 3, timestamp = inf: not a valid time"),
        (GENERIC.replace("1.5", "9" * 400), r"line 3, timestamp = 9+.*: not a valid time"),
        (MOONCAKE.replace("3500", "1e15"), r"line 2, timestamp = 1000000000000000.0: not a valid time"),
        (AZURE.replace("2023", "0001"), r"line 2, TIMESTAMP = .*: not a valid time"),
        (AZURE.replace("2023", "9999"), r"line 2, TIMESTAMP = .*: not a valid time"),
        (GENERIC.replace("396", "10000001"), r"line 3, prompt_tokens = 10000001: .* at most 10000000"),
        (AZURE.replace(",8", ",1e13"), r"line 3, GeneratedTokens = '1e13': .* at most 10000000"),
        (GENERIC.replace("396", "9" * 400), r"line 3, prompt_tokens = 9+.*: use a whole number"),
        (GENERIC.replace("396", "9" * 5000), r"line 3 = .*: not valid JSON \(Exceeds the limit"),
        (AZURE.replace("3180", "9" * 5000), r"line 3, ContextTokens = '9+.*: use a whole number"),
        (GENERIC.replace("396", "[" * 100_000), r"line 3 = .*: it is nested too deeply"),
        ("[1, 2]\n", r"line 1 = '\[1, 2\]': write one JSON object per line"),
        ("[" * 100_000, r"line 1 = .*: it is nested too deep"),
        (AZURE.replace("3180", "31\x0080"), r"line 3 = .*: the line contains a NUL"),
        (AZURE.encode("utf-16-le"), r"line 1 = .*: the line contains a NUL"),
        (
            AZURE.replace("GeneratedTokens", "ContextTokens"),
            "line 1 = .*: duplicate column ContextTokens; remove one",
        ),
        (GENERIC.replace('"output_tokens": 109', '"timestamp": 3'), r"line 3 = .*\(duplicate key timestamp\)"),
        (AZURE + "2023-11-16 18:17:05,7,8,9\n", r"line 4 = '4 values': there are 3 columns"),
        (BURSTGPT.replace(",API log", ""), r"line 4, Log Type = None: the value is missing"),
        (GENERIC + "x" * 1_000_001, r"line 4 = 'x+...': the line is longer than 1000000 characters"),
        (AZURE + '2023-11-16 18:17:05,7,"8' + "\n" * 200_000, r"line 4 = 'unreadable': not valid CSV"),
        (",".join(map(str, range(999))) + "\n" + ",".join("1" * 999), "line 1 = .{82}: unknown format; known"),
        (gzip.compress(AZURE.encode())[:-12], r"line \d = 'unreadable': cannot decompress the file further"),
        (gzip.compress(AZURE.encode()) + b"more", r"line \d = 'unreadable': cannot decompress the file further"),
        (b"\x1f\x8b" + AZURE.encode(), "line 1 = 'unreadable': cannot decompress the file further"),
        (gzip.compress(b""), "the file is empty"),
        (gzip.compress(b"PAR1\xff"), "line 1 = .*: the line is not text in UTF-8"),
        (
            AZURE.replace("4808", "48\xe908").encode("latin-1"),
            "line 2 = .*: the line is not text in UTF-8",
        ),
        (GENERIC.replace("396", "3.5"), r"line 3, prompt_tokens = 3.5: use a whole number"),
        (GENERIC.replace("396", "true"), r"line 3, prompt_tokens = True: use a whole number"),
        (GENERIC[:-10], r"line 3 = .*: not valid JSON"),
        (GENERIC + "[1, 2]", r"line 4 = '\[1, 2\]': write one JSON object per line"),
    ],
    ids=lambda part: repr(part)[-40:],
)
def test_a_bad_trace_is_refused_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _read(tmp_path, text)
    assert "trace" in caught.value.field
    assert "trace.txt" in str(caught.value)


def test_a_compressed_trace_is_read_as_what_it_holds(tmp_path: Path) -> None:
    for text in (AZURE, GENERIC):
        assert _read(tmp_path, gzip.compress(text.encode())).requests == _read(tmp_path, text).requests


def test_blank_lines_and_any_line_ends_are_fine(tmp_path: Path) -> None:
    for end in ("\n\n", "\r\n", "\r", "\n  \n"):
        text = f" {end}{GENERIC_CSV}".replace("\n", end)
        assert _read(tmp_path, text).requests == _read(tmp_path, GENERIC).requests


def test_equal_arrivals_keep_their_order_with_and_without_a_limit(tmp_path: Path) -> None:
    text = GENERIC_CSV + "".join(f"0.25,{number},1\n" for number in range(1, 50))
    whole = _read(tmp_path, text)
    assert [request.prompt_tokens for request in whole.requests[:50]] == [374, *range(1, 50)]
    assert _read(tmp_path, text, limit=30).requests == whole.requests[:30]


def test_a_long_trace_of_which_little_is_kept_takes_little_memory(tmp_path: Path) -> None:
    text = gzip.compress((GENERIC_CSV + "1.5,396,109\n" * 30_000).encode())
    tracemalloc.start()
    try:
        assert len(_read(tmp_path, text, limit=10).requests) == 10
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match=r"it is a (folder|device or a pipe)\); give another file"):
            read_trace(path)


def test_bad_limits_and_paths_are_named(tmp_path: Path) -> None:
    for name in ("limit", "max_prompt", "max_output"):
        with pytest.raises(InputError, match=f"{name} = 0"):
            _read(tmp_path, AZURE, **{name: 0})
    for path in (tmp_path / "none.csv", tmp_path, Path("no\0name"), Path("x" * 5000)):
        with pytest.raises(InputError, match="cannot read the file"):
            read_trace(path)


@pytest.mark.parametrize(
    ("name", "count", "prompt_tokens", "output_tokens", "last_s"),
    [
        ("AzureLLMInferenceTrace_code.csv", 8819, 18_059_974, 245_896, 3435.948056),
        ("mooncake_synthetic_head200.jsonl", 200, 2_663_480, 38_364, 58.501),
        ("azure_conv_head2000_poisson2.jsonl", 2000, 1_762_857, 521_064, 1016.175452),
    ],
)
def test_the_shared_traces_are_read_whole(
    name: str, count: int, prompt_tokens: int, output_tokens: int, last_s: float
) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{name} is not in ../shared/traces; get it from its source to run this test")
    workload = read_trace(path)
    assert len(workload.requests) == count
    assert workload.requests[-1].arrival_s == pytest.approx(last_s)
    assert sum(request.prompt_tokens for request in workload.requests) == prompt_tokens
    assert sum(request.max_tokens for request in workload.requests) == output_tokens
