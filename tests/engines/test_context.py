"""One rule says how long a request may be, live or simulated."""

from __future__ import annotations

import pytest

from engines.errors import InputError
from engines.policy.context import context_of


def test_drafts_that_run_past_the_end_need_room() -> None:
    assert context_of(2048, 4) == 2043
    assert context_of(2048, 4, 100) == 100
    with pytest.raises(InputError, match="max_context = 2044: use 2 to 2043"):
        context_of(2048, 4, 2044)
    with pytest.raises(InputError, match=r"draft_length = 2046: .*use at most 2045"):
        context_of(2048, 2046)
