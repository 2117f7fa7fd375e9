"""What a live record says of how much of the device a run used."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from engines.live.model.pairs import Pair
from engines.live.model.permutation import shape_config
from engines.live.serving.engine import LiveEngine
from engines.live.serving.memory import empty_model
from engines.live.serving.serve import serve
from engines.live.serving.utilisation import Sample, Sampler, count_model, measure_ceilings, nvml_reader, pair_counts
from engines.pairs.shapes import SHAPES
from engines.policy.architecture import ARCHITECTURES, PD
from engines.record.metrics import device_utilisation
from engines.record.roofline import Ceilings, achieved
from engines.record.run import Run
from engines.workload.workload import Workload
from tests.engines.live.conftest import random_requests

CPU = torch.device("cpu")


def test_models_are_counted_from_their_shapes() -> None:
    llama = count_model(empty_model(shape_config(SHAPES["llama2-7b"])), torch.bfloat16)
    assert llama.weight_bytes == 2 * (6_738_415_616 - 32_000 * 4096)  # embeddings are looked up, not read
    assert llama.token_bytes == 524_288  # 0.52 MB a token
    tied, untied = (count_model(empty_model(shape_config(SHAPES["qwen3-0.6b"], tie)), torch.bfloat16)
                    for tie in (True, False))  # fmt: skip
    assert tied == untied


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_live_record_carries_its_utilisation(name: str, llama: Pair, tmp_path: Path) -> None:
    ceilings = Ceilings(10e9, 50e9)
    with LiveEngine(ARCHITECTURES[name], llama) as engine:
        run = serve(engine, Workload(random_requests(6), concurrency=3), ceilings=ceilings)
    said = Run.load(run.save(tmp_path / "run")).info["utilisation"]
    expected = {**device_utilisation(run), **achieved(run, pair_counts(llama), ceilings)}
    assert {key: said[key] for key in expected} == pytest.approx(expected)
    assert said["ceilings"] == vars(ceilings)
    assert said["tb_per_s"] > 0
    assert not any(key.startswith("nvml") for key in said)  # a CPU has none


def test_without_ceilings_only_rates_are_given(llama: Pair) -> None:
    with LiveEngine(PD, llama) as engine:
        said = serve(engine, Workload(random_requests(2), concurrency=1)).info["utilisation"]
    assert said["verify.tflop_per_s"] > 0
    assert not any("share" in key or key == "ceilings" for key in said)


def test_nobody_served_is_no_error(llama: Pair) -> None:
    with LiveEngine(PD, llama, max_context=10) as engine:
        run = serve(
            engine, Workload(tuple(r for r in random_requests(12) if r.prompt_tokens > 10)[:2], concurrency=1)
        )
    assert run.spans.empty
    assert run.info["utilisation"] == {}


def test_samples_are_averaged() -> None:
    readings = iter([Sample(0.5, 100.0), Sample(1.0, 300.0)])
    taken = []

    def read() -> Sample:
        sample = next(readings, None)
        if sample is None:
            raise RuntimeError("the driver is gone")  # ends the sampling, not the run
        taken.append(sample)
        return sample

    with Sampler(read, 0.001) as sampler:
        deadline = time.monotonic() + 10
        while len(taken) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert sampler.summary() == {"nvml_samples": 2, "nvml_utilisation": 0.75, "nvml_memory_bytes": 200.0}


def test_without_a_reader_nothing_is_sampled() -> None:
    assert nvml_reader(CPU) is None
    with Sampler(None) as sampler:
        pass
    assert sampler.summary() == {}


def test_ceilings_are_measured_on_this_machine() -> None:
    ceilings = measure_ceilings(CPU, repeats=3)
    assert 1e8 < ceilings.copy_bytes_per_s < 1e13
    assert 1e8 < ceilings.matrix_operations_per_s < 1e15
