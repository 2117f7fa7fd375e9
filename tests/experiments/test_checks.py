"""`pdv check`, `profile-kernels` and `train-pair`: tiny ones pass, broken ones fail, bad input gets one line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from engines.errors import InputError  # noqa: E402
from engines.live.model.pairs import load_pair  # noqa: E402
from engines.live.serving.engine import LiveEngine  # noqa: E402
from engines.pairs.shapes import SHAPES  # noqa: E402
from engines.storage.locks import locked  # noqa: E402
from engines.workload.corpus import is_held_out  # noqa: E402
from engines.workload.lengths import parse_lengths  # noqa: E402
from experiments.bench import caches  # noqa: E402
from experiments.checks import soak  # noqa: E402
from experiments.cli import main  # noqa: E402
from experiments.commands.arguments import parse_numbers  # noqa: E402
from experiments.embedded_pair import train  # noqa: E402

pytestmark = pytest.mark.live
Refusal = Callable[[str], str]
GPU_CHECKS = ["check products", "check kernels", "profile-kernels"]
TINY = "--pair permutation:tiny+tiny-draft:alpha=0.7"
SHORT = f"{TINY} --architectures pdv --prompt-tokens 12 --output-tokens 12"


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the checks can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a small GPU")


def test_a_short_soak_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"check soak --architectures pdv --requests 200 --clients 12 --out {tmp_path}".split()) == 0
    (row,) = pd.read_csv(tmp_path / "soak.csv").to_dict("records")
    assert row["finished"] + row["cancelled"] == row["requests"] == 200
    assert row["finished"] > 0
    assert row["cancelled"] > 0
    assert "all correct" in capsys.readouterr().out


def test_a_soak_with_a_wrong_token_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = soak.expected_output
    monkeypatch.setattr(soak, "expected_output", lambda *arguments: right(*arguments) + 1)
    assert main(f"check soak --architectures pd --requests 20 --clients 4 --out {tmp_path}".split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"pdv: pd: request \d+ has wrong tokens", line)


def test_slots_hold_what_a_recomputation_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"check caches {SHORT} --out {tmp_path}".split()) == 0
    (row,) = pd.read_csv(tmp_path / "caches.csv", keep_default_na=False).to_dict("records")
    assert row["sequences"] > 0
    assert row["failure"] == ""
    assert "equal to the recomputation" in capsys.readouterr().out


def test_a_check_of_slots_that_notices_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(caches, "check_slot", lambda *arguments, **options: [])
    assert main(f"check caches {SHORT} --out {tmp_path}".split()) == 1
    assert "sequences; damage made on purpose (another slot) was not noticed" in capsys.readouterr().out


def test_a_family_is_served_exactly_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"check families --family gpt2 --family bert --out {tmp_path}".split()) == 0
    table = pd.read_csv(tmp_path / "families.csv")
    assert table[["family", "outcome"]].to_numpy().tolist() == [
        ["bert", "refused at load"], ["bert", "exact"], ["gpt2", "exact"],
    ]  # fmt: skip
    assert "served, with every token equal to generate's: 2" in capsys.readouterr().out
    assert "refused at load:\n  bert: " in (tmp_path / "families.txt").read_text()


def test_a_trained_pair_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for name in (f"module_{i}.py" for i in range(40)):
        library.joinpath(name).write_text("def double(number):\n    return 2 * number\n" * 60)
    assert {is_held_out(path.name) for path in library.iterdir()} == {True, False}
    for name in ("embedded-target", "embedded-draft"):
        monkeypatch.setitem(SHAPES, name, SHAPES["embedded-draft"].with_layers(1))
    monkeypatch.setattr(train, "POOL_TOKENS", 264)
    seconds = " ".join(f"--{phase}-seconds 0.1" for phase in ("target", "draft", "pool", "distil"))
    measured = "--batch 1 --pool-requests 1 --requests 2 --prompt-tokens 16 --output-tokens 16"
    command = f"train-pair {seconds} {measured} --library {library} --out {tmp_path / 'pair'}"
    monkeypatch.setattr("sys.argv", ["pdv", *command.split()])
    assert main(command.split()) == 0
    said = tomllib.loads((tmp_path / "pair" / "training.toml").read_text())
    assert said["command"] == f"pdv {command}"
    assert said["acceptance"]["requests"] == 2
    assert load_pair(tmp_path / "pair").vocabulary == 264
    capsys.readouterr()
    assert f"{tmp_path / 'pair'}': it contains draft; move" in refusal(command)


@pytest.mark.parametrize("command", GPU_CHECKS)
def test_a_check_of_kernels_needs_a_gpu(command: str, monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refusal(command)
    assert line == "device = 'cuda': torch finds no GPU on this machine; run this on a machine with one"


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("command", GPU_CHECKS)
def test_a_check_of_kernels_needs_triton(command: str, monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    monkeypatch.setattr("experiments.checks.hardware.find_spec", lambda name: None)
    line = refusal(command)
    assert line == "device = 'cuda': the kernels need triton; install the extra: pip install 'pdv[cuda]'"


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("command", GPU_CHECKS[:2])
def test_a_check_of_kernels_needs_the_memory_of_their_launches(
    command: str, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("engines.live.kernels.dependent_launch.shared_bytes_of", lambda device: 99 * 1024)
    line = refusal(command)
    assert line.startswith("device = 'a small GPU': a program may use 101376 bytes of its shared memory but needs ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("check kernels --budget-s 0", "budget_s = 0.0: "),
        ("check kernels --jobs 0", "jobs = 0: "),
        ("check kernels --shapes tiny,huge", "shape = 'huge': use one of llama2-7b"),
        ("check products --shapes huge", "shape = 'huge': use one of llama2-7b"),
        ("check products --tokens 0", "tokens = '0': "),
        ("profile-kernels --device cpu", "device = 'cpu': the kernels need a GPU"),
        ("profile-kernels --device tpu", "device = 'tpu': the kernels need a GPU"),
        ("profile-kernels --context 1", "context = 1: "),
        ("check graphs --dtype half", "dtype = 'half'"),
        ("check graphs --clients 0", "clients = '0'"),
        ("check graphs --clients 1000000", "slots = 1000000: "),
        ("check graphs --architectures fast", "architecture = 'fast'"),
        ("check graphs --pair permutation:tiny+huge", "shape = 'huge'"),
        ("check graphs --device tpu", "device = 'tpu'"),
        ("check soak --requests 19", "requests = 19: use a whole number of at least 20"),
        ("check soak --requests -1", "requests = -1: "),
        ("check soak --clients 0", "clients = 0: "),
        ("check soak --architectures pd,fast", "architecture = 'fast'"),
        ("check soak --device tpu", "device = 'tpu': "),
        ("check soak --device cuda:99", "device = 'cuda:99': "),
        ("check caches --output-tokens 1", "output_tokens = 1: "),
        ("check caches --pair no/such/folder", "pair = 'no/such/folder': "),
        ("check caches --prompt-tokens 3000", "prompt_tokens + output_tokens = 3032: the pair supports 2043"),
        ("check families --family lama", "family = 'lama': transformers has no such decoder"),
        ("train-pair --device tpu", "device = 'tpu': "),
        ("train-pair --library /nowhere", "library = '/nowhere': too few Python sources are there"),
        ("train-pair --target-seconds 0", "target_seconds = 0.0: "),
        ("train-pair --batch -1", "batch = -1: "),
        ("train-pair --prompt-tokens 2000", "prompt_tokens, output_tokens = (2000, 128): use 2048 or fewer together"),
    ],
)
def test_bad_input_gets_one_line_before_any_work(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("engines.live.model.pairs.make_pair", lambda *arguments: pytest.fail("a pair was made"))
    assert message in refusal(command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("with_gpu")
def test_more_tokens_than_a_skinny_pass_has_are_refused(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    pytest.importorskip("triton")
    assert refusal("check products --tokens 65") == "tokens = 65: use 64 or fewer"


@pytest.mark.parametrize(
    ("command", "name"),
    [("check graphs", "graphs.csv"), ("check soak", "soak.csv"), ("check caches", "caches.csv"),
     ("check families", "families.csv"), ("train-pair", "target")],
)  # fmt: skip
def test_what_others_put_there_is_not_replaced(command: str, name: str, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / name).write_text("mine\n")
    assert "move it, or give another folder" in refusal(f"{command} --out {tmp_path}")
    assert (tmp_path / name).read_text() == "mine\n"
    assert "give a folder" in refusal(f"{command} --out {tmp_path / name}")


@pytest.mark.parametrize("command", ["check soak --requests 20", f"check caches {SHORT}", "check families"])
def test_one_process_at_a_time_writes_there(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.setattr(LiveEngine, "__init__", lambda *arguments, **options: pytest.fail("an engine was made"))
    with locked(tmp_path):
        monkeypatch.setattr("engines.storage.locks._held", set())  # as another process sees it
        assert "another process is writing there" in refusal(f"{command} --out {tmp_path}")


def test_a_soak_that_cannot_fit_is_refused_before_the_pair_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.setattr("engines.live.serving.memory.free_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(soak, "load_pair", lambda *arguments, **options: pytest.fail("the pair was made"))
    assert "does not fit" in refusal(f"check soak --out {tmp_path}")


@pytest.mark.parametrize(
    "text", ["1-" + "9" * 5000, "1-" + "9" * 18, "9" * 18, "9" * 30 + "~0.5[1-2]", "64~0.5[1-" + "9" * 18 + "]"]
)
def test_lengths_that_no_context_holds_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_lengths("output_tokens", text)


@pytest.mark.parametrize("number", ["9" * 5000, "0"])
def test_numbers_that_are_none_of_this_world_are_refused(number: str) -> None:
    with pytest.raises(InputError, match="batches"):
        parse_numbers("batches", f"1,{number}")
