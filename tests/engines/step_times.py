"""Made-up step times for load-adaptive draft lengths, as formulas."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Formula:
    """Seconds of a device that reads weights for `weights_s` and computes a row of the target in `row_s`.

    A verify takes the larger of the two, a draft `draft_s` per pass. rate: speed of each of two lanes side by side.
    """

    weights_s: float = 5e-3
    row_s: float = 4e-5
    one_draft_s: float = 1e-3
    rate: float = 0.6
    step_s: float = 0.0

    def draft_s(self, batch: int, k: int, context_tokens: float) -> float:
        return k * self.one_draft_s

    def verify_s(self, batch: int, k: int, context_tokens: float) -> float:
        return max(self.weights_s, batch * (k + 1) * self.row_s)

    def host_s(self, batch: int, drafts: bool, verifies: bool) -> float:
        return self.step_s

    def side_by_side(self, drafting: int, verifying: int, k: int, context_tokens: float) -> tuple[float, float]:
        return self.rate, self.rate

    def catch_up_s(self, tokens: int) -> float:
        return 1e-3 + tokens * 1e-5
