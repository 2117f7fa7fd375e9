"""Prompts: real text or random tokens, keyed by seed and request."""

from __future__ import annotations

import pytest

from engines.errors import InputError
from engines.workload.corpus import held_out_files
from engines.workload.lengths import FixedLength, UniformLength
from engines.workload.workload import make_workload, with_prompts, with_random_prompts

SHORT = FixedLength(8)


def test_prompts_are_real_text_of_exactly_the_asked_length() -> None:
    workload = with_prompts(make_workload(6, UniformLength(5, 60), SHORT, concurrency=1), str.encode, seed=3)
    source = b"".join(held_out_files().values())
    for request in workload.requests:
        assert request.prompt is not None
        assert len(request.prompt) == request.prompt_tokens
        assert bytes(request.prompt) in source
    assert len({request.prompt for request in workload.requests}) == 6


def test_prompts_of_one_length_differ() -> None:
    workload = make_workload(6, FixedLength(40), SHORT, concurrency=1)
    prompted = with_prompts(workload, str.encode)
    assert len({request.prompt for request in prompted.requests}) == 6
    assert prompted.info == {**workload.info, "prompt_seed": 0}
    assert prompted == with_prompts(workload, str.encode, seed=0)


def test_a_tokenizer_that_packs_several_bytes_into_a_token_gets_enough_text() -> None:
    def encode(text: str) -> list[int]:
        return [sum(text[i : i + 5].encode()) for i in range(0, len(text), 5)]

    workload = with_prompts(make_workload(4, FixedLength(33), SHORT, concurrency=1), encode)
    assert {len(request.prompt or ()) for request in workload.requests} == {33}


def test_random_prompts_fill_the_vocabulary_and_stay_when_requests_are_added() -> None:
    few, many, other = (
        with_random_prompts(make_workload(n, FixedLength(50), SHORT, concurrency=1), 5, seed=seed)
        for n, seed in ((3, 0), (40, 0), (3, 1))
    )
    assert many.requests[:3] == few.requests
    assert other.requests != few.requests
    assert few == with_random_prompts(make_workload(3, FixedLength(50), SHORT, concurrency=1), 5)
    assert {len(request.prompt or ()) for request in many.requests} == {50}
    assert {token for request in many.requests for token in request.prompt or ()} == set(range(5))
    assert few.info == {**make_workload(3, FixedLength(50), SHORT, concurrency=1).info, "prompt_seed": 0}


def test_prompts_are_keyed_by_seed_and_request() -> None:
    few, many, other = (
        with_prompts(make_workload(n, UniformLength(5, 60), SHORT, concurrency=1), str.encode, seed=seed)
        for n, seed in ((3, 0), (9, 0), (3, 1))
    )
    assert many.requests[:3] == few.requests
    assert all(a.prompt != b.prompt for a, b in zip(few.requests, other.requests, strict=True))


def test_a_prompt_longer_than_any_file_is_named() -> None:
    workload = make_workload(1, FixedLength(10_000_000), SHORT, concurrency=1)
    with pytest.raises(InputError, match=r"request 0\.prompt_tokens = 10000000: no held-out file"):
        with_prompts(workload, str.encode)
