"""The check of graphs against uncaptured stages: it passes where they agree, and a single wrong token fails it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from engines.live.model.graphs import Captured, GraphRunner  # noqa: E402
from engines.live.model.pairs import Pair, load_pair  # noqa: E402
from engines.pairs.permutation import expected_output, make_cycle, parse_pair  # noqa: E402
from engines.policy.architecture import Segment  # noqa: E402
from engines.policy.request import Request  # noqa: E402
from experiments.bench import exactness  # noqa: E402
from experiments.bench.exactness import expected_of, is_tie  # noqa: E402
from experiments.checks import graphs as graph_check  # noqa: E402
from experiments.checks.graphs import Load, Served, compare, even_temperature, layout, make_loads, serve_all  # noqa: E402
from experiments.cli import main  # noqa: E402

pytestmark = pytest.mark.live
NAME = graph_check.PAIRS["cpu"]
SPEC = parse_pair(NAME)
Check = Callable[[str], tuple[int, pd.DataFrame, str]]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(NAME)


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """Runs the command on short requests; returns its exit code, its table and what it printed."""
    monkeypatch.setattr(graph_check, "LONGEST_PROMPT", 16)
    monkeypatch.setattr(graph_check, "LONGEST_OUTPUT", 6)

    def run(options: str) -> tuple[int, pd.DataFrame, str]:
        code = main(["check", "graphs", *options.split(), "--out", str(tmp_path)])
        return code, pd.read_csv(tmp_path / "graphs.csv", keep_default_na=False), capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def served(pair: Pair) -> tuple[dict[str, Load], dict[str, Served]]:
    """What an uncaptured PD says to five clients, by decoding."""
    loads = make_loads(pair, [5], even_temperature(NAME))
    said = serve_all(layout("pd", "3 to 5", 5), pair, loads, graphs=False)
    names = [load.decoding for load in loads]
    return dict(zip(names, loads, strict=True)), dict(zip(names, said, strict=True))


def test_every_case_agrees_and_is_reported(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[int] = []
    replay = Captured.replay
    monkeypatch.setattr(Captured, "replay", lambda self: (replays.append(1), replay(self))[1])
    late, catch_up = list[int](), GraphRunner.ready_to_catch_up
    monkeypatch.setattr(
        GraphRunner, "ready_to_catch_up", lambda self, *args: (late.append(sum(args[2])), catch_up(self, *args))[1]
    )
    code, rows, out = check("--clients 1,5")
    assert code == 0
    assert len(replays) > 500
    assert len(late) > 20
    assert len(set(late)) > 3  # tokens
    assert not rows.duplicated([*graph_check.CASE, "clients"]).any()
    assert len(rows) == 3 * 4 * 3 * 2  # architectures, draft lengths, decodings, clients
    assert (rows["equal"] == rows["requests"]).all()
    assert (rows["requests"] > rows["clients"]).all()
    greedy, mixed = (rows[rows["decoding"] == name] for name in ("greedy", "mixed"))
    assert (greedy["known"] == greedy["requests"]).all()
    assert mixed["known"].between(1, mixed["requests"] - 1).all()
    assert (rows["control_equal"] == rows["control_requests"]).all()
    assert (rows["control_requests"] > 0).all()
    assert set(rows.loc[rows["draft_length"].astype(str) == "0", "drafted"]) == {""}
    assert set(rows.loc[rows["draft_length"] == "0 or 3", "drafted"].astype(str)) == {"3"}
    assert set(rows.loc[rows["draft_length"] == "3 to 5", "drafted"]) & {"3 4", "4 5", "3 4 5"}
    assert "all correct" in out
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize(
    ("segment", "sampling"), [(Segment.VERIFY, False), (Segment.VERIFY, True), (Segment.PREFILL_TARGET, True)]
)
def test_one_wrong_token_of_a_replay_fails_the_check(
    segment: Segment, sampling: bool, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, tickets = GraphRunner.ready, iter([True])

    def wrong_once(
        self: GraphRunner, asked: Segment, slots: Sequence[int], counts: Sequence[int], k: int, samples: bool
    ) -> Callable[[], torch.Tensor | None]:
        call = right(self, asked, slots, counts, k, samples)

        def altered() -> torch.Tensor | None:
            result = call()
            if (asked, samples) == (segment, sampling) and next(tickets, False):
                assert result is not None
                first = result[0, 1:2] if segment is Segment.VERIFY else result[:1]
                first.copy_((first + 1) % SPEC.target_shape.vocabulary)
            return result

        return altered

    for other in ("0", "3 to 5", "0 or 3"):
        monkeypatch.delitem(graph_check.DRAFT_LENGTHS, other)
    monkeypatch.setattr(GraphRunner, "ready", wrong_once)
    code, rows, out = check("--architectures pdv --clients 3")
    assert code == 1
    assert rows["wrong"].sum() == 1
    (wrong,) = rows[rows["wrong"] == 1].to_dict("records")
    assert wrong["decoding"] == ("sampled" if sampling else "greedy")
    assert f"WRONG: float32 pdv, k 4, {wrong['decoding']}, 3 clients: 1 of 9, first {wrong['first']}" in out


def test_graphs_that_forget_whose_noise_it_is_fail_where_requests_sample(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GraphRunner.ready

    def without_keys(self: GraphRunner, *arguments: object) -> Callable[[], torch.Tensor | None]:
        self.stages.keys.zero_()
        return right(self, *arguments)  # type: ignore[arg-type]

    for other in ("0", "3 to 5", "0 or 3"):
        monkeypatch.delitem(graph_check.DRAFT_LENGTHS, other)
    monkeypatch.setattr(GraphRunner, "ready", without_keys)
    code, rows, _ = check("--architectures pd --clients 4")
    assert code == 1
    assert not rows.loc[rows["decoding"] == "greedy", "wrong"].any()
    assert (rows.loc[rows["decoding"] != "greedy", "wrong"] > 0).all()


def test_what_both_say_wrongly_is_wrong(pair: Pair, served: tuple[dict[str, Load], dict[str, Served]]) -> None:
    requests, said = served[0]["greedy"].workload.requests, served[1]["greedy"]
    expected = expected_of(NAME, pair)
    assert compare(pair, expected, requests, said, said)["wrong"] == 0
    spoilt = {**said.outputs, 2: [*said.outputs[2][:-1], 5]}
    found = compare(pair, expected, requests, Served(spoilt, [4]), Served(spoilt, [4]))
    assert (found["wrong"], found["first"]) == (1, f"request 2, output token {len(spoilt[2]) - 1}")


def test_an_output_that_is_missing_is_wrong(pair: Pair, served: tuple[dict[str, Load], dict[str, Served]]) -> None:
    requests, said = served[0]["sampled"].workload.requests, served[1]["sampled"]
    cut = Served({**said.outputs, 3: said.outputs[3][:-1]}, [4])
    found = compare(pair, expected_of(NAME, pair), requests, cut, cut)
    assert (found["equal"], found["wrong"]) == (len(requests) - 1, 1)


def test_sampling_is_a_matter_of_luck_at_the_temperature_chosen(
    served: tuple[dict[str, Load], dict[str, Served]],
) -> None:
    """A permutation pair at a temperature of 0.8 says hardly anything but its permutation, and would test nothing."""
    cycle = make_cycle(SPEC)
    following = dict(zip(cycle.order.tolist(), cycle.target_next.tolist(), strict=True))
    favourite = [
        following.get(before) == token
        for request in served[0]["sampled"].workload.requests
        for tokens in [served[1]["sampled"].outputs[request.id]]
        for before, token in zip([request.prompt[-1], *tokens], tokens, strict=False)  # type: ignore[index]
    ]
    assert 0.3 < sum(favourite) / len(favourite) < 0.7


@pytest.mark.parametrize("decoding", ["greedy", "sampled"])
def test_a_plain_pass_finds_what_the_engine_said_best_and_hardly_anything_else(
    decoding: str, pair: Pair, served: tuple[dict[str, Load], dict[str, Served]]
) -> None:
    for request in served[0][decoding].workload.requests[:5]:
        tokens = served[1][decoding].outputs[request.id]
        for place, token in enumerate(tokens):
            assert is_tie(pair, request, tokens[:place], (token,))
            assert not is_tie(pair, request, tokens[:place], (token, (token + 1) % pair.vocabulary))


def test_parting_at_a_tie_is_counted_apart(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, count = (9, 30, 77), 6
    request = Request(0, len(prompt), count, prompt=prompt, temperature=1.0, seed=3)
    eager = Served({0: [40, 50, 60, 70, 80, 90]}, [4])
    graphs = Served({0: [40, 50, 61, 71, 81, 91]}, [4])
    expected = expected_of(NAME, pair)
    assert compare(pair, expected, [request], graphs, eager)["wrong"] == 1
    monkeypatch.setitem(exactness.ROUNDING, torch.float32, 100.0)
    found = compare(pair, expected, [request], graphs, eager)
    assert (found["equal"], found["ties"], found["wrong"]) == (0, 1, 0)
    known = expected_output(SPEC, prompt, count).tolist()
    greedy = Request(0, len(prompt), count, prompt=prompt)
    assert compare(pair, expected, [greedy], graphs, Served({0: known}, [4]))["wrong"] == 1  # never where it is known
