"""Replays: which live run one repeats, whatever it is called, and what is no replay."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engines.errors import InputError
from engines.policy.architecture import PDV
from engines.record.metrics import summary
from engines.record.run import Run
from engines.workload.workload import FixedLength, make_workload, replay
from experiments.compare.compare import compare
from experiments.compare.identity import identity
from experiments.runner.predict import (
    AcceptanceChoice,
    Prediction,
    parse_acceptance,
    predict,
    predict_totals,
    replayed,
)
from sim.engine import asked
from tests.experiments import synthetic

TAPE = AcceptanceChoice("tape")
Namesakes = tuple[list[Run], list[Run]]


def refused(lives: list[Run], simulations: list[Run]) -> str:
    with pytest.raises(InputError) as caught:
        compare(lives, simulations)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def namesakes() -> Namesakes:
    """Two live runs of one name, the second slower, and the replay of each."""
    lives = [synthetic.live("pdv", "run", seed=3), synthetic.live("pdv", "run", seed=4, slower=1.5)]
    settings = Prediction(synthetic.profile(), TAPE)
    return lives, [predict(PDV, replayed(live), settings, live=live) for live in lives]


def test_a_replay_finds_its_live_run_among_namesakes(namesakes: Namesakes) -> None:
    lives, replays = namesakes
    for given in (lives, lives[::-1]):
        paired = compare(given, replays).paired.groupby("quantity")["live_mean_s"].agg(list)
        expected = [float((run.requests["finish_s"] - run.requests["arrival_s"]).mean()) for run in lives]
        assert paired["latency_s"] == pytest.approx(expected)


def test_a_replay_finds_its_live_run_under_another_name(namesakes: Namesakes, tmp_path: Path) -> None:
    lives, replays = namesakes
    lives[0].save(tmp_path / "elsewhere")
    moved = Run.load(tmp_path / "elsewhere")
    moved.info["name"] = "renamed"
    assert set(compare([moved], replays[:1]).paired["run"]) == {"renamed"}


def test_a_replay_whose_live_run_is_not_there_is_refused(namesakes: Namesakes) -> None:
    (first, second), (replay, _) = namesakes
    assert "pdv replays a different live run of this name" in refused([second], [replay])
    other = dataclasses.replace(second, info={**second.info, "name": "other"})
    assert "pdv replays a run that is not among the live runs" in refused([other], [replay])
    assert identity(first) != identity(second)


def test_a_replay_recorded_before_runs_had_an_identity_is_known_by_an_unambiguous_name(
    namesakes: Namesakes,
) -> None:
    lives, _ = namesakes
    made = predict(PDV, replay(lives[0]), Prediction(synthetic.profile(), TAPE), live=lives[0])
    old = dataclasses.replace(made, info={k: v for k, v in made.info.items() if k != "replays_id"})
    assert len(compare(lives[:1], [old]).paired) == 3
    assert "2 of the live runs have this name" in refused(lives, [old])
    assert "arrival times" in refused(lives[1:], [old])
    other = dataclasses.replace(lives[0], info={**lives[0].info, "name": "other"})
    assert "none of the live runs has this name" in refused([other], [old])


def test_a_replay_of_a_closed_loop_waits_for_its_own_completions() -> None:
    """On a device twice as fast the clients send twice as fast: nothing queues up as it would behind recorded
    arrivals, and nothing idles."""
    live = synthetic.live("pdv", slower=2.0, count=30)
    made = predict(PDV, replayed(live), Prediction(synthetic.profile(), TAPE), live=live)
    ends = np.sort(made.requests["finish_s"])
    assert made.requests["arrival_s"].tolist() == [0.0, 0.0, 0.0, *ends[:27]]
    assert made.requests["output_tokens"].tolist() == live.requests["output_tokens"].tolist()
    assert made.duration_s == pytest.approx(live.duration_s / 2, rel=0.05)
    assert made.info["replays"] == live.name


def test_clients_of_a_replay_think_as_long_as_they_did() -> None:
    asked = make_workload(12, FixedLength(20), FixedLength(10), concurrency=2, mean_think_s=0.05, seed=1)
    live = synthetic.live("pdv", asked=asked)
    assert replayed(live).think_s == pytest.approx(asked.think_s)


def test_an_open_loop_is_replayed_at_its_arrivals() -> None:
    live = synthetic.live("pdv", rate=20.0)
    made = predict(PDV, replayed(live), Prediction(synthetic.profile(), TAPE), live=live)
    assert made.requests["arrival_s"].tolist() == live.requests["arrival_s"].tolist()


def test_a_simulated_run_is_not_replayed_as_a_live_one() -> None:
    run = synthetic.simulated("pdv")
    settings = Prediction(synthetic.profile(), TAPE)
    with pytest.raises(InputError, match="replay = 'pdv': the record has kind = 'simulated'; give a live run"):
        replayed(run)
    with pytest.raises(InputError, match="live = 'pdv': the record has kind = 'simulated'"):
        predict(PDV, synthetic.workload(), settings, live=run)


def test_longer_outputs_than_the_live_tapes_are_refused() -> None:
    live = synthetic.live("pdv", asked=make_workload(3, FixedLength(20), FixedLength(10), concurrency=1))
    longer = make_workload(3, FixedLength(20), FixedLength(11), concurrency=1)
    with pytest.raises(InputError, match="request 0 asks for 11 output tokens and its tape has 10"):
        predict(PDV, longer, Prediction(synthetic.profile(), TAPE), live=live)


def test_a_summary_without_a_record_is_the_records() -> None:
    settings = Prediction(synthetic.profile(), AcceptanceChoice("independent", (0.7,)), seed=3)
    load = make_workload(30, FixedLength(40), FixedLength(20), concurrency=4)
    expected = summary(predict(PDV, load, settings))
    found = predict_totals(PDV, load, settings)[0].summary(asked(PDV, load))
    assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def test_masks_of_a_file_are_the_tapes_that_they_hold(tmp_path: Path) -> None:
    live = synthetic.live("pdv")
    lines = [json.dumps({"request": number, "bits": tape.tolist()}) for number, tape in live.tapes.items()]
    (tmp_path / "masks.jsonl").write_text("\n".join(lines))
    choice = parse_acceptance(str(tmp_path / "masks.jsonl"))
    runs = [predict(PDV, replayed(live), Prediction(synthetic.profile(), c), live=live) for c in (choice, TAPE)]
    pd.testing.assert_frame_equal(runs[0].requests, runs[1].requests)
    assert runs[0].info["acceptance"] == {"source": "tapes", "unknown": 0.0, "masks": "masks.jsonl"}


def test_what_masks_hold_determines_a_prediction_and_their_place_does_not(tmp_path: Path) -> None:
    bits = {"a": [-1, 1, 0], "b": [-1, 1, 0], "c": [-1, 1, 1]}
    for name, mask in bits.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"request": 0, "bits": mask}))
    first, same, other = (parse_acceptance(str(tmp_path / f"{name}.jsonl")).describe() for name in bits)
    assert first == same
    assert first != other
