"""What cannot fit a device is refused before any weights are read; `--slots auto` takes what fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

torch = pytest.importorskip("torch")

from engines.live.model.pairs import load_configs, load_pair  # noqa: E402
from engines.live.serving.memory import GIB, MOST_SLOTS, plan_slots  # noqa: E402
from engines.policy.architecture import PD, PDV  # noqa: E402
from engines.record.run import Run  # noqa: E402
from engines.workload.workload import FixedLength, make_workload  # noqa: E402
from experiments.cli import main  # noqa: E402
from experiments.runner import live as serving  # noqa: E402
from experiments.runner.cells import at_once  # noqa: E402
from experiments.runner.preflight import check_calibration_fits, check_fits, fill  # noqa: E402

pytestmark = pytest.mark.live
CPU, MIB = torch.device("cpu"), 1 << 20
Free, Refusal = Callable[..., None], Callable[[str], str]


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


@pytest.mark.parametrize("command", ["run --pair {0}", "run --target {0}/target --draft {0}/draft --slots auto",
                                     "calibrate --pair {0}", "bench --pair {0}", "experiment {1}"])  # fmt: skip
def test_a_pair_too_large_is_refused_before_its_weights_are_read(
    command: str, large: Path, tmp_path: Path, free: Free, refusal: Refusal
) -> None:
    config = tmp_path / "large.toml"
    config.write_text(f'architectures = ["pd"]\nconcurrencies = [1]\npair = "{large}"\nmode = "live"\n')
    free(20 * GIB)
    line = refusal(f"{command.format(large, config)} --out {tmp_path}/out")
    assert line.startswith("pair = '29.20 GiB of weights': does not fit (weights need 29.20 GiB, each slot of ")
    assert "reserve 2.00 GiB; 20.00 GiB is free" in line
    assert not (tmp_path / "out").exists()


def test_weights_that_fit_are_read(large: Path, free: Free, refusal: Refusal) -> None:
    free(2000 * GIB)
    assert "cannot be loaded" in refusal(f"run --pair {large}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--slots 1000000", r"slots = 1000000: \d+ fit (weights need "),
        ("--max-context 508", "max_context = 508: use 2 to 507: the models have 512 positions, drafts take 5"),
        ("--draft-length 510", "draft_length = 510: the models have 512 positions"),
        ("--reserve-gib 1e6", "reserve 1000000.00 GiB; "),
        ("--slots auto --reserve-gib 1e6", "use a smaller pair or reserve"),
        ("--slots auto --reserve-gib 1e300", "use a smaller pair or reserve"),
    ],
)
def test_slots_and_contexts_that_cannot_be_are_refused_before_weights_are_read(
    options: str, expected: str, small: Path, free: Free, refusal: Refusal
) -> None:
    free(3 * GIB)
    line = refusal(f"run --pair {small} {options}")
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
    options: str, expected: str, small: Path, free: Free, refusal: Refusal
) -> None:
    free(3 * GIB)
    assert expected in refusal(f"calibrate --pair {small} {options}")


def test_an_experiment_checks_every_layout_and_its_calibration(
    small: Path, tmp_path: Path, free: Free, refusal: Refusal
) -> None:
    free(3 * GIB)
    config = tmp_path / "config.toml"
    start = f'concurrencies = [1]\npair = "{small}"\n'
    config.write_text(start + 'architectures = ["pd", { base = "pdv", slots = 900000 }]\n[calibration]\n')
    assert "slots = 900000: " in refusal(f"experiment {config} --out {tmp_path}/out")
    config.write_text(start + 'architectures = ["pd"]\n[calibration]\ncontexts = [600]\n')
    assert "contexts, prompt_tokens = 600: " in refusal(f"experiment {config} --out {tmp_path}/out")


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
    assert f"pdv: slots: {plan.slots} fit ({plan})" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(("most", "slots"), [(6, 6), (1500, MOST_SLOTS)])
def test_no_more_slots_are_taken_than_the_load_can_use_nor_than_the_help_says(
    most: int, slots: int, free: Free, capsys: pytest.CaptureFixture[str]
) -> None:
    free(1000 * GIB)
    assert fill(PD, most, "embedded", max_context=64).slots == slots
    assert ("the maximum" in capsys.readouterr().err) == (most > MOST_SLOTS)
    assert main(["run", "--help"]) == 0
    assert f"{MOST_SLOTS} at most" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_as_many_requests_are_there_at_once_as_there_are_clients_or_requests() -> None:
    tokens = FixedLength(8)
    assert at_once(make_workload(20, tokens, tokens, concurrency=6)) == 6
    assert at_once(make_workload(4, tokens, tokens, concurrency=6)) == 4
    assert at_once(make_workload(9, tokens, tokens, rate=5.0)) == 9


@pytest.mark.parametrize(("options", "named"), [("", False), ("--slots auto", False), ("--slots 7", True),
                                                ("-a with.toml", True), ("-a without.toml", False)])  # fmt: skip
def test_a_run_takes_what_fits_unless_its_slots_are_named(
    options: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = PD.to_dict() | {"slots": 7}
    Path("with.toml").write_text(tomli_w.dumps(table))
    Path("without.toml").write_text(tomli_w.dumps({name: v for name, v in table.items() if name != "slots"}))
    load = "-c 2 -n 2 --prompt-tokens 4 --output-tokens 4 --max-context 32"
    assert main(f"run {options} {load} --out x".split()) == 0
    assert Run.load(Path("x")).info["architecture"]["slots"] == (7 if named else 2)


def test_what_fits_is_let_through(free: Free) -> None:
    points = {"batches": [1, 4], "draft_lengths": [4], "contexts": [32], "prompt_tokens": [16], "packed": [1]}
    plan = plan_slots(PD, load_configs("embedded"), CPU, torch.float32, 64, free=256 * MIB)
    free(plan.free)
    check_fits(PD.replace(slots=plan.slots), "embedded", max_context=64)
    check_calibration_fits(points, "embedded")


@pytest.mark.parametrize("max_context", [None, 8])
def test_a_warm_up_fits_whatever_context_it_has(max_context: int | None) -> None:
    tokens = FixedLength(4)
    workloads = [make_workload(2, tokens, tokens, concurrency=2)]
    with serving.started(PD, load_pair("embedded"), workloads, max_context) as engine:
        serving.warm_up(engine, workloads)
        assert len(serving.serve(engine, workloads[0], "embedded").finished) == 2
