"""Settings of a bench, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import InputError, require_positive, require_whole
from engines.policy.architecture import Architecture
from engines.policy.draft_length import FixedDraftLength


@dataclass(frozen=True)
class BenchSettings:
    """What a bench measures. Lengths are in tokens.

    pair, device: as in engines.live.model.pairs.load_pair. Stages: draft and verify of `batches` requests with
    `draft_length` drafts each, and verify with none, after `context` tokens; prefills of one prompt of `prompts`
    tokens. Engines:
    closed loops of `concurrencies` clients, each with at most `requests_per_client` requests of `prompt_tokens` and
    `output_tokens`. budget_s: approximate total time once the pair is loaded, in seconds.
    """

    pair: str
    device: str
    context: int
    draft_length: int
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    concurrencies: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    architectures: tuple[str, ...]
    peers: bool
    requests_per_client: int
    budget_s: float
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("context", 2), ("draft_length", 1), ("prompt_tokens", 1), ("output_tokens", 2),
            ("requests_per_client", 2), ("seed", 0),
        ):  # fmt: skip
            require_whole(name, getattr(self, name), least)
        require_positive("budget_s", self.budget_s)
        for name in ("batches", "prompts", "concurrencies", "architectures"):
            if not getattr(self, name):
                raise InputError(name, "", "give one or more, separated by commas")

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, including drafts."""
        return max(self.context, *self.prompts, self.prompt_tokens + self.output_tokens) + self.draft_length + 2

    def layout(self, architecture: Architecture) -> Architecture:
        """Return the architecture at the draft length of the bench, unless it never drafts."""
        if not architecture.drafts:
            return architecture
        return architecture.replace(draft_length=FixedDraftLength(self.draft_length))


ARCHITECTURES = ("target-only", "baseline", "pd", "pdv")
SMALL = BenchSettings(
    pair="embedded", device="cpu", context=64, draft_length=4, batches=(1, 4), prompts=(16, 64),
    concurrencies=(1, 8), prompt_tokens=32, output_tokens=32, architectures=ARCHITECTURES, peers=True,
    requests_per_client=3, budget_s=40.0,
)  # fmt: skip
LARGE = BenchSettings(
    pair="permutation:llama2-7b+tinyllama-1.1b:alpha=0.8", device="cuda", context=400, draft_length=4,
    batches=(1, 8, 64), prompts=(128, 512, 960), concurrencies=(1, 10, 64), prompt_tokens=128, output_tokens=256,
    architectures=ARCHITECTURES, peers=True, requests_per_client=3, budget_s=300.0,
)  # fmt: skip


def defaults_for(device: str) -> BenchSettings:
    """Return the default settings for a kind of device: minutes on a GPU, less on a CPU."""
    return SMALL if device == "cpu" else LARGE
