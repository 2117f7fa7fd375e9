"""Measure how much of the device a run used: NVML samples, and achieved rates compared with ceilings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from engines.live.device.streams import make_stream, timed
from engines.live.model.kv_cache import layer_shape
from engines.live.model.pairs import Pair, default_dtype
from engines.live.model.permutation import embedding_weights
from engines.record.metrics import device_utilisation
from engines.record.roofline import Ceilings, ModelCounts, PairCounts, achieved
from engines.record.run import Run

INTERVAL_S = 0.05


class Sample(NamedTuple):
    """One NVML sample.

    utilisation: fraction of NVML's own sampling period (a sixth of a second to one second) in which a kernel ran.
    memory_bytes: memory in use on the device, by all processes.
    """

    utilisation: float
    memory_bytes: float


class Sampler:
    """Call `read` every `interval_s` seconds in a thread during the block. Does nothing if `read` is None."""

    def __init__(self, read: Callable[[], Sample] | None, interval_s: float = INTERVAL_S) -> None:
        self._read, self._interval_s = read, interval_s
        self._samples: list[Sample] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        if self._read is not None:
            self._thread = threading.Thread(target=self._sample, args=(self._read,), name="nvml", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self, read: Callable[[], Sample]) -> None:
        while True:
            try:
                self._samples.append(read())
            except Exception:  # a driver that stops answering must not stop the run
                return
            if self._over.wait(self._interval_s):
                return

    def summary(self) -> dict[str, float]:
        """Return the means over the samples; empty if there are none."""
        if not self._samples:
            return {}
        return {
            "nvml_samples": len(self._samples),
            "nvml_utilisation": fmean(sample.utilisation for sample in self._samples),
            "nvml_memory_bytes": fmean(sample.memory_bytes for sample in self._samples),
        }


def nvml_reader(device: torch.device) -> Callable[[], Sample] | None:
    """Return a function that reads the device's counters; None on a CPU or if NVML's bindings are missing."""
    if device.type != "cuda":
        return None

    def read() -> Sample:
        return Sample(torch.cuda.utilization(device) / 100, float(torch.cuda.device_memory_used(device)))

    try:
        read()
    except Exception:  # bindings not installed, or a driver without these counters
        return None
    return read


def pair_counts(pair: Pair) -> PairCounts:
    """Count what a pass of each model reads and computes."""
    return PairCounts(count_model(pair.target), count_model(pair.draft))


def count_model(model: PreTrainedModel, dtype: torch.dtype | None = None) -> ModelCounts:
    """Count the parameters and heads of a model, on any device, including meta.

    dtype: of the weights in service, if it differs from the model's.
    """
    embeddings, head = embedding_weights(model)
    outside = embeddings.numel() + (0 if head is embeddings else head.numel())
    layers, kv_heads, head_dim = layer_shape(model.config)
    return ModelCounts(
        layer_parameters=sum(parameter.numel() for parameter in model.parameters()) - outside,
        head_parameters=head.numel(),
        layers=layers,
        heads=model.config.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_bytes=(dtype or model.dtype).itemsize,
    )


def measure_ceilings(device: torch.device, dtype: torch.dtype | None = None, repeats: int = 10) -> Ceilings:
    """Time a large copy and a large square matrix product (small ones on a CPU). The best of `repeats` counts."""
    dtype = dtype or default_dtype(device)
    size, side = (1 << 31, 8192) if device.type == "cuda" else (1 << 26, 512)
    return Ceilings(
        copy_bytes_per_s=2 * size / _copy_s(device, size, repeats),
        matrix_operations_per_s=2 * side**3 / _product_s(device, dtype, side, repeats),
    )


def utilisation(run: Run, pair: Pair, sampled: dict[str, float], ceilings: Ceilings | None) -> dict[str, Any]:
    """Return run.info["utilisation"]; only NVML's means if nothing ran.

    Otherwise also the fraction of time with at least one, two or three segments on the device, and the achieved rates
    (engines.record.roofline.achieved).
    """
    if run.spans.empty or run.duration_s <= 0:
        return dict(sampled)
    measured = {} if ceilings is None else {"ceilings": vars(ceilings)}
    return {**sampled, **device_utilisation(run), **achieved(run, pair_counts(pair), ceilings), **measured}


def _copy_s(device: torch.device, size: int, repeats: int) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()  # zeros can be faster than data
    goal = torch.empty_like(source)
    return _best_s(device, lambda: goal.copy_(source), repeats)


def _product_s(device: torch.device, dtype: torch.dtype, side: int, repeats: int) -> float:
    left = torch.randn(side, side, dtype=dtype, device=device)
    product = torch.empty_like(left)
    return _best_s(device, lambda: torch.mm(left, left, out=product), repeats)


def _best_s(device: torch.device, call: Callable[[], Any], repeats: int) -> float:
    """Return the shortest of `repeats` calls on the device, after one for warm-up, in seconds."""
    stream = make_stream(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the inputs were made on another stream
    taken = []
    for _ in range(repeats + 1):
        _, (start, end) = timed(stream, lambda: [call])
        taken.append(end - start)
    return min(taken[1:])
