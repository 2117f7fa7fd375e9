"""The kernels around a decode stage's pass do what the PyTorch functions of the same names do.

Without a GPU they run in Triton's interpreter, see test_kernels.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engines.live.kernels import table_updates
from engines.live.kernels.tables import Candidates, Tables
from engines.live.model.attention import Layout
from engines.live.model.pairs import Pair
from engines.live.model.stages import Stages

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="triton is not installed, so its kernels are not checked")

from engines.live.kernels import table_updates_triton  # noqa: E402

SLOTS, ROW_LENGTH, MOST_DRAFTS, VOCABULARY = 11, 41, 8, 150
NAMES = ("feed", "candidates", "keep_first_drafts", "keep_next_drafts", "keep_verified")
BATCHES = [(1, 0), (3, 0), (8, 0), (1, 1), (5, 3)]  # members, and how many times the scratch slot comes after them


def random_tables(most_drafted: int) -> Tables:
    """Slots that have 0 to `most_drafted` drafts, and the scratch slot as a pass leaves it."""
    tables = Tables(
        torch.randint(0, VOCABULARY, (SLOTS + 1, ROW_LENGTH)),
        torch.randint(2, ROW_LENGTH - MOST_DRAFTS, (SLOTS + 1,)),
        torch.randint(0, VOCABULARY, (SLOTS + 1, MOST_DRAFTS)),
        torch.randint(0, most_drafted + 1, (SLOTS + 1,)),
    )
    tables.lengths[:2] = torch.tensor([2, ROW_LENGTH - MOST_DRAFTS - 1])  # the shortest and the longest
    tables.lengths[-1], tables.draft_lengths[-1] = 2, 1
    return tables


def random_slots(members: int, padding: int) -> Tensor:
    return torch.cat([torch.randperm(SLOTS)[:members], torch.full((padding,), SLOTS)])


def on_device(value: Any) -> Any:
    """A copy of whatever consists of tensors."""
    if isinstance(value, Tensor):
        return value.clone().to(DEVICE)
    return type(value)(*map(on_device, value)) if isinstance(value, tuple) else value


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and torch.equal(found.cpu(), expected)
    return all(map(same, found, expected))


def both(name: str, members: int, tables: Tables, slots: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """What the kernel and the function return for a batch's members, once they have left the tables alike."""
    theirs = on_device(tables)
    found = getattr(table_updates_triton, name)(theirs, *map(on_device, (slots, *arguments)))
    expected = getattr(table_updates, name)(tables, slots, *arguments)
    assert same([t[:-1] for t in theirs], [t[:-1] for t in tables])
    scratch = [int(t[-1]) for t in (theirs.lengths, theirs.draft_lengths)]
    assert scratch == [2, 1] == [int(t[-1]) for t in (tables.lengths, tables.draft_lengths)]
    return (None, None) if expected is None else (found[:members].cpu(), expected[:members])


@pytest.fixture(params=[64, 4096], ids=["3 parts", "1 part"])
def offer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Turns tokens into what is offered when these are picked, on the host."""
    monkeypatch.setattr(table_updates_triton, "COLUMNS", request.param)

    def offered(picked: Tensor) -> Candidates:
        logits = torch.randn(picked.numel(), VOCABULARY).scatter_(1, picked.view(-1, 1), 9.0)
        return Candidates(*(each.cpu() for each in table_updates_triton.candidates(logits.to(DEVICE))))

    return offered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (5, 61), (2, 4096), (3, 4097), (2, 10_000), (1, 151_936)])
def test_every_row_picks_its_argmax(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocabulary)
    for logits in (torch.randn(rows, vocabulary), -torch.rand(rows, vocabulary) - 5):
        logits = logits.to(dtype)
        assert same(table_updates_triton.candidates(logits.to(DEVICE)).picked, logits.argmax(-1))


def test_the_first_of_equal_logits_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(table_updates_triton, "COLUMNS", 16)
    logits = torch.randint(-3, 0, (40, 100)).float()
    logits[:3] = torch.tensor([[-torch.inf], [torch.inf], [0.0]])
    logits[3] = logits[3].where(torch.arange(100) > 79, -torch.inf)  # whole parts of nothing
    picks = Candidates(*on_device(table_updates_triton.candidates(logits.to(DEVICE))))
    assert same(picks.picked, logits.argmax(-1))
    tables, slots = random_tables(0), torch.randint(0, SLOTS, (1,)).expand(1)
    verified = table_updates_triton.keep_verified(
        on_device(tables), on_device(slots), 7, Candidates(*(p[:8] for p in picks))
    )
    assert same(verified[0, 1:], logits[:8].argmax(-1))  # merged by the kernel, too


def test_what_is_no_number_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr(table_updates_triton, "COLUMNS", 64)
    logits = torch.randn(4, VOCABULARY)
    logits[0] = torch.nan
    logits[1, 100] = torch.nan
    picked = table_updates_triton.candidates(logits.to(DEVICE)).picked.cpu()
    assert picked.min() >= 0
    assert picked.max() < VOCABULARY
    assert same(picked[2:], logits[2:].argmax(-1))


@pytest.mark.parametrize(("members", "padding"), BATCHES)
@pytest.mark.parametrize(
    ("back", "count", "drafted"), [(2, 2, False), (1, 1, True)] + [(1, k + 1, False) for k in (0, 1, 2, 4, 8)]
)
def test_feed(back: int, count: int, drafted: bool, members: int, padding: int) -> None:
    torch.manual_seed(count)
    tables, slots = random_tables(MOST_DRAFTS), random_slots(members, padding)
    for _ in range(3):
        theirs = table_updates_triton.feed(on_device(tables), on_device(slots), back, count, drafted)
        assert same(theirs, table_updates.feed(tables, slots, back, count, drafted))


def test_more_tokens_than_one_program_feeds() -> None:
    torch.manual_seed(2)
    tables, slots = random_tables(MOST_DRAFTS), torch.randint(0, SLOTS, (53,))
    assert table_updates_triton.FEED_TOKENS < 53 * 9
    found = table_updates_triton.feed(on_device(tables), on_device(slots), 1, 9, False)
    assert same(found, table_updates.feed(tables, slots, 1, 9, False))


@pytest.mark.parametrize(("members", "padding"), BATCHES)
def test_keep_first_drafts(members: int, padding: int, offer: Any) -> None:
    torch.manual_seed(3)
    tables, slots = random_tables(MOST_DRAFTS), random_slots(members, padding)
    picked = torch.randint(0, VOCABULARY, (members + padding, 2))
    picked[::2, 0] = tables.tokens[slots, tables.lengths[slots] - 1][::2]
    draft_agrees, expected = both("keep_first_drafts", members, tables, slots, offer(picked))
    assert same(draft_agrees, expected)
    assert bool(draft_agrees[::2].all())


@pytest.mark.parametrize(("members", "padding"), BATCHES)
def test_keep_next_drafts(members: int, padding: int, offer: Any) -> None:
    torch.manual_seed(4)
    tables, slots = random_tables(MOST_DRAFTS - 4), random_slots(members, padding)
    for _ in range(4):
        both("keep_next_drafts", members, tables, slots, offer(torch.randint(0, VOCABULARY, (members + padding,))))


@pytest.mark.parametrize(("members", "padding"), BATCHES)
@pytest.mark.parametrize("k", [0, 1, 3, 8])
@pytest.mark.parametrize("matching", ["all", "none", "some"])
def test_keep_verified(matching: str, k: int, members: int, padding: int, offer: Any) -> None:
    torch.manual_seed(k)
    tables, slots = random_tables(k), random_slots(members, padding)
    tables.lengths[-1] = 7 if padding else 2  # as a longer sequence in the scratch slot would leave it
    picked = torch.cat([tables.drafts[slots, :k], torch.randint(0, VOCABULARY, (len(slots), 1))], dim=1)
    if matching != "all":
        wrong = torch.ones(len(slots), k, dtype=torch.bool) if matching == "none" else torch.rand(len(slots), k) < 0.3
        picked[:, :k] = torch.where(wrong, (picked[:, :k] + 1) % VOCABULARY, picked[:, :k])
    draft_lengths = tables.draft_lengths[slots[:members]]
    found, expected = both("keep_verified", members, tables, slots, k, offer(picked))
    assert same(found, expected)
    if matching != "some":
        assert same(found[:, 0], draft_lengths if matching == "all" else torch.zeros_like(draft_lengths))


@pytest.mark.skipif(DEVICE == "cuda", reason="takes the kernels over for a pair that is on the host")
@pytest.mark.parametrize("sampling", [False, True], ids=["greedy", "sampled"])
def test_stages_end_alike_with_the_kernels(sampling: bool, llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded() -> list[Tensor]:
        stages = Stages(llama, slots=4, max_draft_length=3, max_context=40)
        members = torch.tensor([2, 0, 4, 4])
        layout = Layout.of([5, 3, 2, 2], stages.device)
        with torch.inference_mode():
            for slot, length in ((2, 5), (0, 3)):
                stages.load([slot], [range(10 + slot, 10 + slot + length)], [slot], [0.9 * sampling])
            stages.prefill_draft(members, layout)
            stages.prefill_target(members, layout, sampling)
            results = []
            for k in (3, 1, 0, 2, 3):
                results += [stages.draft(members, k, sampling)] if k else []
                results.append(stages.verify(members, k, sampling))
        tables = (stages.tokens, stages.lengths, stages.drafts, stages.draft_lengths)
        return [*(result[:2] for result in results), *(table[:-1] for table in tables)]

    expected = decoded()
    for name in NAMES:
        monkeypatch.setattr(table_updates, name, getattr(table_updates_triton, name))
    assert same(decoded(), expected)
