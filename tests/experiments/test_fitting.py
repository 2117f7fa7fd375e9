"""What cannot fit a device is refused before any weights are read; `--slots auto` takes what fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engines.live.model.pairs import load_configs, load_pair  # noqa: E402
from engines.live.serving.memory import GIB, MOST_SLOTS, plan_slots  # noqa: E402
from engines.policy.architecture import PD, PDV, Architecture  # noqa: E402
from engines.record.run import Run  # noqa: E402
from engines.workload.workload import FixedLength, make_workload  # noqa: E402
from experiments.cli import main  # noqa: E402
from experiments.runner import live as serving  # noqa: E402
from experiments.runner.preflight import check_calibration_fits, check_fits, fill  # noqa: E402

pytestmark = pytest.mark.live
CPU, MIB = torch.device("cpu"), 1 << 20
Free = Callable[..., None]


def unreadable(pair: str, folder: Path) -> Path:
    """The configurations of a pair beside weights that nobody can read."""
    for role, config in zip(("target", "draft"), load_configs(pair), strict=True):
        config.save_pretrained(folder / role)
        (folder / role / "model.safetensors").write_text("no weights")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unreadable("permutation:llama2-7b+tinyllama-1.1b", tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unreadable("permutation:tiny+tiny-draft", tmp_path_factory.mktemp("small"))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Makes a device have this many bytes free: each number once, the last one from then on."""

    def set_free(*sizes: int) -> None:
        left = list(sizes)
        place = "engines.live.serving.memory.free_bytes"
        monkeypatch.setattr(place, lambda device: left.pop(0) if left[1:] else left[0])

    return set_free


def refusal(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command is refused with."""
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize("command", ["run --pair {0}", "run --target {0}/target --draft {0}/draft --slots auto",
                                     "calibrate --pair {0}", "bench --pair {0}", "demo --config {1}"])  # fmt: skip
def test_a_pair_too_large_is_refused_before_its_weights_are_read(
    command: str, large: Path, tmp_path: Path, free: Free, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "large.toml"
    config.write_text(f'architectures = ["pd"]\nconcurrencies = [1]\npair = "{large}"\n')
    free(20 * GIB)
    line = refusal(f"{command.format(large, config)} --out {tmp_path}/out", capsys)
    assert line.startswith("pdv: pair = '29.20 GiB of weights': does not fit (weights need 29.20 GiB, each slot of ")
    assert "reserve 2.00 GiB; 20.00 GiB is free" in line
    assert not (tmp_path / "out").exists()


def test_weights_that_fit_are_read(large: Path, free: Free, capsys: pytest.CaptureFixture[str]) -> None:
    free(2000 * GIB)
    assert "cannot be loaded" in refusal(f"run --pair {large}", capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--slots 1000000", r"slots = 1000000: \d+ fit (weights need "),
        ("--max-context 508", "max_context = 508: use 2 to 507: the models position 512 tokens, drafts take 5"),
        ("--draft-length 510", "draft_length = 510: the models position 512 tokens"),
        ("--reserve-gib 1e6", "reserve 1000000.00 GiB; "),
        ("--slots auto --reserve-gib 1e6", "use a smaller pair or reserve"),
        ("--slots auto --reserve-gib 1e300", "use a smaller pair or reserve"),
    ],
)
def test_slots_and_contexts_that_cannot_be_are_refused_before_weights_are_read(
    options: str, expected: str, small: Path, free: Free, capsys: pytest.CaptureFixture[str]
) -> None:
    free(3 * GIB)
    line = refusal(f"run --pair {small} {options}", capsys)
    before, _, after = expected.partition(r"\d+")
    assert before in line
    assert after in line
    assert "cannot be loaded" not in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--contexts 600", "contexts, prompt_tokens = 600: the pair takes at most 506 with k = 4"),
        ("--batches 2000", "slots = 4001: "),
        ("--batches 20000", "workspace = '"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused_before_weights_are_read(
    options: str, expected: str, small: Path, free: Free, capsys: pytest.CaptureFixture[str]
) -> None:
    free(3 * GIB)
    assert expected in refusal(f"calibrate --pair {small} {options}", capsys)


def test_a_demo_checks_every_layout_and_its_calibration(
    small: Path, tmp_path: Path, free: Free, capsys: pytest.CaptureFixture[str]
) -> None:
    free(3 * GIB)
    config = tmp_path / "config.toml"
    start = f'concurrencies = [1]\npair = "{small}"\n'
    config.write_text(start + 'architectures = ["pd", { base = "pdv", slots = 900000 }]\n')
    assert "slots = 900000: " in refusal(f"demo --config {config} --out {tmp_path}/out", capsys)
    config.write_text(start + 'architectures = ["pd"]\n[calibration]\ncontexts = [600]\n')
    assert "contexts, prompt_tokens = 600: " in refusal(f"demo --config {config} --out {tmp_path}/out", capsys)


@pytest.mark.parametrize(("option", "reserve"), [("", None), ("--reserve-gib 0.03125", 32 * MIB)])
def test_auto_serves_with_as_many_slots_as_the_plan_says(
    option: str, reserve: int | None, tmp_path: Path, free: Free, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading takes all of the reserve too, which is what the reserve is for."""
    plan = plan_slots(PDV, load_configs("embedded"), CPU, torch.float32, 64, reserve=reserve, free=64 * MIB)
    free(plan.free, plan.free - plan.weights - plan.reserve)
    load = "-c 90 -n 90 --prompt-tokens 2 --output-tokens 2"
    assert main(f"run --slots auto --max-context 64 {option} {load} --out {tmp_path}/x".split()) == 0
    run = Run.load(tmp_path / "x")
    assert 1 < plan.slots < 90
    assert run.info["architecture"]["slots"] == plan.slots
    assert len(run.finished) == 90
    assert f"slots: {plan.slots} fit ({plan})" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("requests", "concurrency", "slots", "bound"),
    [(20, 6, 6, "the load can use"), (4, 6, 4, "the load can use"), (2000, 1500, MOST_SLOTS, "auto takes"),
     (2000, None, MOST_SLOTS, "auto takes"), (9, None, 9, "the load can use")],
)  # fmt: skip
def test_auto_takes_no_more_than_the_load_can_use_nor_than_the_help_says(
    requests: int, concurrency: int | None, slots: int, bound: str, free: Free, capsys: pytest.CaptureFixture[str]
) -> None:
    free(1000 * GIB)
    rate = 5.0 if concurrency is None else None
    load = make_workload(requests, FixedLength(8), FixedLength(8), concurrency=concurrency, rate=rate)
    assert fill(PD, load, "embedded", max_context=64).slots == slots
    assert f"slots: {slots}, all that {bound}; " in capsys.readouterr().err
    assert main(["run", "--help"]) == 0
    assert f"{MOST_SLOTS} at most" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_what_fits_is_let_through(free: Free) -> None:
    points = {"batches": [1, 4], "draft_lengths": [4], "contexts": [32], "prompt_tokens": [16], "packed": [1]}
    plan = plan_slots(PD, load_configs("embedded"), CPU, torch.float32, 64, free=256 * MIB)
    free(plan.free)
    check_fits(PD.replace(slots=plan.slots), "embedded", max_context=64)
    check_calibration_fits(points, "embedded")


def test_a_warm_up_fits_whatever_context_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Run] = []
    original = serving.serve

    def serve(architecture: Architecture, *arguments: object, **options: object) -> Run:
        served.append(original(architecture, *arguments, **options))  # type: ignore[arg-type]
        return served[-1]

    monkeypatch.setattr(serving, "serve", serve)
    pair = load_pair("embedded")
    for max_context in (None, 8):
        serving.warm_up(PD, pair, max_context)
    assert [len(run.finished) for run in served] == [4, 4]
    assert served[1].info["max_context"] == 8
