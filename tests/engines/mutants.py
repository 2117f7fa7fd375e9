"""How schedulers that are broken on purpose are listed, each with the rules that it breaks."""

from __future__ import annotations

from collections.abc import Callable

from engines.policy.scheduler import Scheduler


class Mutants(dict[type[Scheduler], tuple[str, ...]]):
    """Broken schedulers, and the rules of which at least one must catch each."""

    def breaks(self, *rules: str) -> Callable[[type[Scheduler]], type[Scheduler]]:
        """Lists a broken scheduler; whichever of its rules is seen broken first catches it."""

        def register(broken: type[Scheduler]) -> type[Scheduler]:
            self[broken] = rules
            return broken

        return register
