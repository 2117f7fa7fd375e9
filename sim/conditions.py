"""The settings of a simulation."""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import require_whole
from sim.acceptance import AcceptanceSource
from sim.cost_protocols import Costs


@dataclass(frozen=True)
class Conditions:
    """What all replicas of a simulation share; sim.engine.simulate explains the fields."""

    costs: Costs
    acceptance: AcceptanceSource
    seed: int = 0
    jitter: bool = True
    max_context: int | None = None
    prefill_tokens: int | None = None

    def __post_init__(self) -> None:
        require_whole("seed", self.seed, 0)
