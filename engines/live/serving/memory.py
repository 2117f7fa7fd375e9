"""Plan the memory of an engine from model configurations alone, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from engines.errors import InputError
from engines.live.device.host_memory import all_host_bytes, free_host_bytes
from engines.live.model.kv_cache import bytes_per_token, count_of, layer_shape, positions_of
from engines.policy.architecture import Architecture, Step
from engines.policy.context import context_of
from engines.policy.segment_shape import CATCH_UP_TOKENS

GIB = 1 << 30
RESERVE_SHARE, RESERVE_LIMIT = 0.1, 4 * GIB
MOST_SLOTS = 1024  # no measured architecture gains from more
SAMPLING_BYTES = 32  # per logit: a float32 copy, and noise made from 64-bit integers
Configs = tuple[PretrainedConfig, PretrainedConfig]


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of the parts of an engine on a device, in bytes.

    weights: both models; 0 if they are already loaded. slot: keys and values of one slot in both pools, and its
    tokens. workspace: activations and logits of the largest batches that can run at once. reserve: left unused, for
    fragmentation, captured graphs and other programs. free: free now. context: tokens per slot.
    """

    weights: int
    slot: int
    workspace: int
    reserve: int
    free: int
    context: int

    @property
    def slots(self) -> int:
        """Number of slots that fit, besides the scratch slot."""
        return max(0, (self.free - self.weights - self.workspace - self.reserve) // self.slot - 1)

    def check(self, slots: int) -> None:
        """Raise InputError, with the numbers, if this many slots do not fit."""
        if slots <= self.slots:
            return
        if self.slots >= 1:
            remedy = f"{self.slots} fit ({self}); use fewer slots or a smaller max_context"
            raise InputError("slots", slots, remedy)
        left, tokens = self.free - self.weights - self.reserve, 2 * self.slot // self.context
        if left - self.workspace >= tokens:
            raise InputError(
                "max_context",
                self.context,
                f"not even one slot of this size fits ({self}); use a smaller max_context",
            )
        if left >= tokens:
            remedy = f"does not fit ({self}); use smaller batches or a smaller max_context"
            raise InputError("workspace", _gib(self.workspace), remedy)
        remedy = f"does not fit ({self}); use a smaller pair or reserve"
        raise InputError("pair", f"{_gib(self.weights)} of weights", remedy)

    def __str__(self) -> str:
        return (
            f"weights need {_gib(self.weights)}, each slot of {self.context} tokens {_gib(self.slot)} (and one more "
            f"for scratch), workspace {_gib(self.workspace)}, reserve {_gib(self.reserve)}; {_gib(self.free)} is free"
        )


def plan_slots(
    architecture: Architecture, configs: Configs, device: torch.device, dtype: torch.dtype,
    max_context: int | None = None, *, reserve: int | None = None, free: int | None = None, loaded: bool = False,
) -> MemoryPlan:  # fmt: skip
    """Plan the memory of an engine for a pair (see engines.live.model.pairs.load_configs) on a device.

    max_context: as for LiveEngine. reserve: bytes; by default a tenth of the free memory, at most 4 GiB. free: bytes;
    by default measured. loaded: whether the weights are already on the device. Raises InputError for a context longer
    than the models support, for configurations that do not describe a decoder, and for lanes on several devices.
    """
    if len(architecture.devices) > 1:
        raise InputError("lanes.device", list(architecture.devices), "the live engine serves from one device")
    context = context_of(positions_of(*configs), architecture.draft_length.maximum, max_context)
    row_length = context + architecture.draft_length.maximum + 1
    token = sum(bytes_per_token(config, dtype) for config in configs) + torch.int64.itemsize
    free = free_bytes(device) if free is None else free
    return MemoryPlan(
        weights=0 if loaded else sum(count_parameters(config) for config in configs) * dtype.itemsize,
        slot=row_length * token,
        workspace=_workspace(architecture, configs, device, dtype, row_length),
        reserve=min(int(RESERVE_SHARE * free), RESERVE_LIMIT) if reserve is None else reserve,
        free=free,
        context=context,
    )


def with_fitting_slots(architecture: Architecture, plan: MemoryPlan, most: int = MOST_SLOTS) -> Architecture:
    """Return the architecture with as many slots as fit, up to `most`. Raises InputError if none fits."""
    plan.check(1)
    return architecture.replace(slots=min(plan.slots, most))


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """Build the model of a configuration on the meta device, without memory. Raises InputError if this fails."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises a dozen kinds of errors for a bad configuration
        said = str(error) or type(error).__name__
        remedy = f"its configuration does not describe a decoder ({said.splitlines()[0]})"
        raise InputError("pair", config.model_type, remedy) from error


def count_parameters(config: PretrainedConfig) -> int:
    """Return the number of parameters of a model. Tied embeddings count once."""
    return sum(parameter.numel() for parameter in empty_model(config).parameters())


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a device, including what torch has cached on a GPU."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    free = free_host_bytes()
    if free is None:  # use all memory instead, to refuse at least what can never fit
        free = all_host_bytes()
    if free is None:
        raise InputError("device", str(device), "this system does not report how much memory it has; use another")
    return free


def _workspace(
    architecture: Architecture, configs: Configs, device: torch.device, dtype: torch.dtype, row_length: int
) -> int:
    """Return the bytes that the largest steps of all workers need together."""
    k = architecture.draft_length.maximum
    total = 0
    for lane in architecture.lanes:
        for config in configs:
            widest = 0
            for step, batch in lane.steps.items():
                tokens, rows = (batch * row_length, batch) if step is Step.PREFILL else (batch * (k + 1),) * 2
                if step is not Step.PREFILL and architecture.catches_up:
                    tokens = max(tokens, CATCH_UP_TOKENS)
                gathered = batch * row_length if device.type == "cpu" else 0
                widest = max(widest, _pass_bytes(config, dtype, tokens, rows, gathered))
            total += lane.workers * widest
    return total


def _pass_bytes(config: PretrainedConfig, dtype: torch.dtype, tokens: int, rows: int, gathered: int) -> int:
    """Return the peak bytes of one pass: hidden states, the gated MLP or attention, then logits of `rows` tokens.

    gathered: number of tokens whose keys and values are copied out of the pool.
    """
    _, kv_heads, head_dim = layer_shape(config)
    attention = 2 * (count_of(config, "num_attention_heads") + kv_heads) * head_dim
    hidden = count_of(config, "hidden_size")
    intermediate = getattr(config, "intermediate_size", None)
    widest = max(intermediate) if isinstance(intermediate, list | tuple) else intermediate or 4 * hidden
    layer = 4 * hidden + max(3 * widest, attention)
    inside = (tokens * layer + 2 * gathered * kv_heads * head_dim) * dtype.itemsize
    return max(inside, rows * count_of(config, "vocab_size") * (dtype.itemsize + SAMPLING_BYTES))


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / (1 << 20):.2f} MiB"
