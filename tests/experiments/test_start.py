"""The entry point answers an interrupt in one line, also while the program is still being imported."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from experiments import start


def test_an_interrupt_during_the_imports_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__

    def interrupted(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "experiments.cli":
            raise KeyboardInterrupt
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert start.main() == 130
    assert capsys.readouterr().err == "pdv: interrupted\n"


def test_the_exit_code_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pdv", "simulate", "--concurrency", "-1"])
    assert start.main() == 2
