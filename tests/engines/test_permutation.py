"""Permutation pairs in closed form: one cycle, a dialled draft, and names that say which."""

from __future__ import annotations

import numpy as np
import pytest

from engines.errors import InputError
from engines.pairs.permutation import PermutationSpec, expected_output, expected_tape, make_cycle, parse_pair

LLAMA = parse_pair("permutation:llama2-7b+tinyllama-1.1b")


def walk_one_by_one(next_of: dict[int, int], token: int, count: int) -> list[int]:
    out = []
    for _ in range(count):
        token = next_of[token]
        out.append(token)
    return out


def successors(spec: PermutationSpec) -> tuple[dict[int, int], dict[int, int]]:
    cycle = make_cycle(spec)
    order = cycle.order.tolist()
    return (
        dict(zip(order, cycle.target_next.tolist(), strict=True)),
        dict(zip(order, cycle.draft_next.tolist(), strict=True)),
    )


@pytest.mark.parametrize(
    ("name", "special"),
    [
        ("permutation:llama2-7b+tinyllama-1.1b", {0, 1, 2}),
        ("permutation:llama3.1-8b+llama3.2-1b", {128_000, 128_001, 128_255}),
        ("permutation:qwen3-14b+qwen3-0.6b", {151_643, 151_645, 151_935}),
    ],
)
def test_one_cycle_holds_every_ordinary_token(name: str, special: set[int]) -> None:
    spec = parse_pair(name)
    said = expected_output(spec, [5], len(make_cycle(spec).order))
    assert said[-1] == 5  # back after one round, and not before
    assert len(set(said.tolist())) == len(said) >= spec.target_shape.vocabulary - 300
    assert not special & set(said.tolist())


def test_output_and_tape_follow_both_permutations() -> None:
    spec = parse_pair("permutation:tiny+tiny-draft:alpha=0.7")
    target, draft = successors(spec)
    output = expected_output(spec, [9, 100], 600)  # more than once round
    assert output.tolist() == walk_one_by_one(target, 100, 600)
    bits = [draft[token] == target[token] for token in output[:-1].tolist()]
    tape = expected_tape(spec, [9, 100], 600)
    assert tape[0] == -1
    assert tape[1:].tolist() == bits


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_the_draft_permutation_is_wrong_on_exactly_its_share(alpha: float) -> None:
    spec = PermutationSpec("llama2-7b", "tinyllama-1.1b", (alpha,))
    target, draft = successors(spec)
    assert sorted(draft.values()) == sorted(target.values())
    right = sum(target[token] == draft[token] for token in target)
    assert right == len(target) - round((1 - alpha) * len(target))


def test_acceptance_varies_by_region_and_not_along_a_request() -> None:
    spec = parse_pair("permutation:llama2-7b+tinyllama-1.1b:alpha=0.9,0.5")
    order = make_cycle(spec).order
    first, second = (expected_tape(spec, [order[start]], 8000)[1:].mean() for start in (0, len(order) // 2))
    assert first == pytest.approx(0.9, abs=0.01)
    assert second == pytest.approx(0.5, abs=0.015)


def test_after_a_special_token_the_output_is_known_too() -> None:
    order = make_cycle(LLAMA).order
    assert expected_output(LLAMA, [7, 2], 3).tolist() == order[1:4].tolist()


def test_a_seed_changes_the_cycle_and_a_name_does_not() -> None:
    assert np.array_equal(expected_output(LLAMA, [5], 50), expected_output(parse_pair(LLAMA.name), [5], 50))
    other = parse_pair("permutation:llama2-7b+tinyllama-1.1b:seed=1")
    assert not np.array_equal(expected_output(LLAMA, [5], 50), expected_output(other, [5], 50))


@pytest.mark.parametrize(
    "spec",
    [LLAMA, PermutationSpec("tiny", "tiny-draft", (0.25, 1.0, 0.5), 1.0, 7, 2), PermutationSpec("tiny", "tiny")],
)
def test_a_name_reads_back(spec: PermutationSpec) -> None:
    assert parse_pair(spec.name) == spec


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("permutation:llama2-7b", "write permutation:"),
        ("permutation:gpt+tinyllama-1.1b", "use one of llama2-7b"),
        ("permutation:llama2-7b+qwen3-0.6b", "shapes of one family"),
        ("permutation:tiny+tiny-draft:alpha=high", "could not convert"),
        ("permutation:tiny+tiny-draft:alpha=1.5", "probabilities"),
        ("permutation:tiny+tiny-draft:alpha=nan", "probabilities"),
        ("permutation:tiny+tiny-draft:alpha=" + ",".join(["1"] * 9), "at most 8"),
        ("permutation:tiny+tiny-draft:scale=0", "more than 0"),
        ("permutation:tiny+tiny-draft:seed=-1", "0 or more"),
        ("permutation:tiny+tiny-draft:layers=0", "use 1 to 2"),
        ("permutation:llama2-7b+tinyllama-1.1b:layers=23", "use 1 to 22"),
        ("permutation:tiny+tiny-draft:layers=two", "layers and seed whole numbers"),
        ("permutation:tiny+tiny-draft:beta=1", '"beta" is no option'),
        ("permutation:tiny+tiny-draft:layers=1:layers=2", "every option only once"),
    ],
)
def test_a_bad_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_pair(name)


def test_where_layers_say_too_much_nothing_is_claimed() -> None:
    spec = parse_pair("permutation:tiny+tiny-draft:scale=1")
    for claim in (expected_output, expected_tape):
        with pytest.raises(InputError, match="override the permutation"):
            claim(spec, [5], 1)


@pytest.mark.parametrize(
    ("pair", "at_full_scale"),
    [("llama2-7b+tinyllama-1.1b", True), ("llama3.1-8b+llama3.2-1b", True), ("qwen3-14b+qwen3-0.6b", False)],
)
def test_wide_models_follow_the_permutation_at_full_scale_too(pair: str, at_full_scale: bool) -> None:
    assert parse_pair(f"permutation:{pair}").closed_form
    assert parse_pair(f"permutation:{pair}:scale=1").closed_form is at_full_scale


def test_a_pair_of_few_layers_keeps_every_other_size_and_the_cycle() -> None:
    few = parse_pair("permutation:llama2-7b+tinyllama-1.1b:layers=2")
    for shape, whole in ((few.target_shape, LLAMA.target_shape), (few.draft_shape, LLAMA.draft_shape)):
        assert shape.settings == {**whole.settings, "num_hidden_layers": 2}
    assert np.array_equal(expected_output(few, [5], 50), expected_output(LLAMA, [5], 50))
