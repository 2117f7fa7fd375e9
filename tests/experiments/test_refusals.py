"""The checks and studies that are run as modules refuse what they cannot do in one line, before any work."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engines.errors import InputError  # noqa: E402
from engines.workload.lengths import parse_lengths  # noqa: E402
from experiments.checks import soak  # noqa: E402
from experiments.commands.arguments import parse_numbers  # noqa: E402
from experiments.embedded_pair import train as train_embedded_pair  # noqa: E402

pytestmark = pytest.mark.live
GPU_CHECKS = ["experiments.checks.products", "experiments.checks.kernels"]
KERNELS = ["decode_attention_triton", "dependent_launch", "skinny_gemm_triton", "skinny_gemm", "table_updates_triton"]


def refusal(module: str, options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `python -m MODULE OPTIONS` is refused with."""
    monkeypatch.setattr(sys, "argv", [module, *options.split()])
    for name in GPU_CHECKS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize("module", GPU_CHECKS)
def test_a_check_of_kernels_needs_a_gpu(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refusal(module, "", monkeypatch, capsys)
    assert line == "device = 'cuda': torch finds no such device here; run this on a machine that has one"


@pytest.mark.parametrize("module", GPU_CHECKS)
def test_a_check_of_kernels_needs_triton(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in KERNELS:
        monkeypatch.delitem(sys.modules, f"engines.live.{name}", raising=False)
    line = refusal(module, "", monkeypatch, capsys)
    assert line == "device = 'cuda': its kernels need triton; install the extra: pip install 'pdv[cuda]'"


@pytest.mark.parametrize("module", GPU_CHECKS)
def test_a_check_of_kernels_needs_the_memory_of_their_launches(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("experiments.checks.hardware.check_kernels", lambda: None)
    monkeypatch.setattr("engines.live.kernels.dependent_launch.shared_bytes_of", lambda device: 99 * 1024)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a small GPU")
    line = refusal(module, "", monkeypatch, capsys)
    assert line.startswith("device = 'a small GPU': a program has 101376 bytes of shared memory there and needs ")


@pytest.mark.parametrize("module", GPU_CHECKS)
@pytest.mark.parametrize(
    ("options", "message"), [("--seconds 0", "seconds = 0.0: "), ("--processes 0", "processes = 0: ")]
)
def test_a_check_of_kernels_refuses_what_means_nothing(
    module: str, options: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.checks.hardware.check_kernels", lambda: None)
    monkeypatch.setattr("experiments.checks.hardware.check_shared_memory", lambda needed: None)
    assert refusal(module, options, monkeypatch, capsys).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--requests 19", "requests = 19: use a whole number of at least 20"),
        ("--requests -1", "requests = -1: "),
        ("--clients 0", "clients = 0: "),
        ("--architectures pd,fast", "architectures = 'fast': use baseline, pd, pdv"),
        ("--device tpu", "device = 'tpu': "),
        ("--device cuda:99", "device = 'cuda:99': "),
        ("--out {folder}", "this is a folder"),
    ],
)
def test_a_soak_refuses_bad_input(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "" if "--out" in options else f" --out {tmp_path}/soak.csv"
    assert soak.main((options.format(folder=tmp_path) + out).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_soak_that_cannot_fit_is_refused_before_the_pair_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engines.live.serving.memory.free_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(soak, "load_pair", lambda *arguments, **options: pytest.fail("the pair was made"))
    assert soak.main(["--out", str(tmp_path / "soak.csv")]) == 2
    assert "does not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--library /nowhere", "library = '/nowhere': too few Python sources to train and measure on"),
        ("--target-seconds 0", "target_seconds = 0.0: "),
        ("--batch -1", "batch = -1: "),
        ("--prompt-tokens 2000", "prompt_tokens, output_tokens = (2000, 128): use at most 2048 together"),
    ],
)
def test_a_training_refuses_bad_input(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_embedded_pair", *options.split(), "--out", str(tmp_path / "pair")])
    assert train_embedded_pair.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert list(tmp_path.iterdir()) == []


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
