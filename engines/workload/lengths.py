"""Lengths of prompts and outputs: fixed, uniform, lognormal, or as listed in a trace."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engines.errors import InputError, require_whole
from engines.policy.request import MOST_TOKENS as MOST_TOKENS
from engines.texts import range_in, whole_in

MOST_SIGMA = 10.0  # of a logarithm: one such standard deviation is a factor of 22,000
_DECIMAL = r"(\d{1,18}(?:\.\d{1,18})?)"
_LOGNORMAL = re.compile(rf"{_DECIMAL}~{_DECIMAL}\[(\d{{1,18}})-(\d{{1,18}})\]")


class Lengths(Protocol):
    """Token counts as a function of uniform numbers in [0, 1), one per request in order of id."""

    def tokens(self, uniform: np.ndarray) -> np.ndarray: ...

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class FixedLength:
    """Every request has the same number of tokens."""

    value: int

    def __post_init__(self) -> None:
        require_whole("length", self.value, 1, MOST_TOKENS)

    def tokens(self, uniform: np.ndarray) -> np.ndarray:
        return np.full(len(uniform), self.value)

    def describe(self) -> dict[str, Any]:
        return {"kind": "fixed", "tokens": self.value}


@dataclass(frozen=True)
class UniformLength:
    """Every whole number from low to high is equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _bounds(self.low, self.high)

    def tokens(self, uniform: np.ndarray) -> np.ndarray:
        return self.low + np.floor(uniform * (self.high - self.low + 1)).astype(int)

    def describe(self) -> dict[str, Any]:
        return {"kind": "uniform", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class LogNormalLength:
    """Lognormal lengths, rounded and clipped to low..high.

    median: tokens. sigma: standard deviation of the logarithm, from 0 to MOST_SIGMA.
    """

    median: float
    sigma: float
    low: int
    high: int

    def __post_init__(self) -> None:
        _bounds(self.low, self.high)
        _number("length.median", self.median, 1, MOST_TOKENS)
        _number("length.sigma", self.sigma, 0, MOST_SIGMA)

    def tokens(self, uniform: np.ndarray) -> np.ndarray:
        from scipy.special import ndtri  # takes 0.1 s to import

        lengths = self.median * np.exp(self.sigma * ndtri(np.maximum(uniform, np.finfo(float).tiny)))
        return np.clip(np.rint(lengths), self.low, self.high).astype(int)

    def describe(self) -> dict[str, Any]:
        return {"kind": "lognormal", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class ListedLength:
    """Listed lengths: request i has the i-th. A list with fewer entries than requests is repeated."""

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError("length.values", (), "list at least one length")
        for value in self.values:
            require_whole("length.values", value, 1, MOST_TOKENS)

    def tokens(self, uniform: np.ndarray) -> np.ndarray:
        return np.resize(self.values, len(uniform))

    def describe(self) -> dict[str, Any]:
        return {"kind": "listed", "values": len(self.values)}


def parse_lengths(field: str, text: str) -> Lengths:
    """Parse lengths in tokens.

    "64" is fixed, "16-96" uniform, and "64~0.5[16-256]" lognormal with median 64 and sigma 0.5, clipped to 16..256.
    Raises InputError.
    """
    if tokens := whole_in(text):
        return FixedLength(tokens)
    if bounds := range_in(text):
        return UniformLength(*bounds)
    if (match := _LOGNORMAL.fullmatch(text)) and 1 <= int(match[3]) <= int(match[4]) and float(match[1]) > 0:
        return LogNormalLength(float(match[1]), float(match[2]), int(match[3]), int(match[4]))
    raise InputError(field, text, "give tokens as 64 (fixed), 16-96 (uniform) or 64~0.5[16-256] (lognormal)")


def _number(field: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(field, value, f"use a number from {least:g} to {most:g}")


def _bounds(low: int, high: int) -> None:
    require_whole("length.low", low, 1)
    require_whole("length.high", high, 1, MOST_TOKENS)
    if high < low:
        raise InputError("length.low, high", (low, high), "need low <= high")
