"""A draft and a target model that share a vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from engines.errors import InputError
from engines.live.attention import NAME, PackedBatch, attends_fully, forward
from engines.live.fused import FusedDecoder, supports
from engines.live.kv_cache import positions_of
from engines.live.permutation import build_models, pair_configs
from engines.permutation import PREFIX, parse_pair

logging.disable_progress_bar()  # a library does not draw on its user's terminal
EMBEDDED = Path(__file__).parent / "embedded"
Forward = Callable[[Tensor, PackedBatch, Tensor | None], Tensor]  # (tokens, batch, keep) -> logits of one pass


@dataclass
class Pair:
    """Two decoders on one device, ready to serve.

    target_forward, draft_forward: one pass of each over a packed batch, which is how the stages run them.
    end_tokens: the tokens that end an output. encode, decode: text to token ids and back, None if the pair came
    without a tokenizer. max_context: tokens that both models can position.
    """

    name: str
    target: PreTrainedModel
    draft: PreTrainedModel
    target_forward: Forward = field(repr=False)
    draft_forward: Forward = field(repr=False)
    end_tokens: frozenset[int] = frozenset()
    encode: Callable[[str], list[int]] | None = None
    decode: Callable[[list[int]], str] | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        return self.target.device

    @property
    def dtype(self) -> torch.dtype:
        return self.target.dtype

    @property
    def vocabulary(self) -> int:
        return int(self.target.config.vocab_size)

    @property
    def max_context(self) -> int:
        return positions_of(self.target.config, self.draft.config)


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name. Raises InputError if it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError("device", str(name), "no such kind of device; use cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError("device", str(name), "use cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise InputError("device", str(name), f"this machine has {count} CUDA devices; use cpu or one that is there")
    return torch.device("cuda", device.index or 0)


def load_pair(
    target: str | Path,
    draft: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    fused: bool = True,
) -> Pair:
    """Load a pair from Hugging Face folders; "embedded" is the one that ships with the project. A name that
    engines.permutation.parse_pair reads is a permutation pair, which is made and not loaded.

    target: folder of the target model, or of a pair (with the subfolders target/ and draft/). Weights are read
    from safetensors only. dtype: default_dtype(device) unless given. fused: see make_pair.
    Raises InputError for a folder that is missing or incomplete, and for models that do not fit each other.
    """
    device = find_device(device)
    dtype = dtype or default_dtype(device)
    if str(target).startswith(PREFIX):
        spec = parse_pair(str(target))
        return make_pair(spec.name, *build_models(spec, device, dtype), fused)
    folders = _folders(target, draft)
    models = [_load(role, folder, device, dtype, trust_remote_code) for role, folder in folders.items()]
    name = "embedded" if str(target) == "embedded" else Path(target).resolve().name
    pair = make_pair(name, models[0], models[1], fused)
    _add_tokenizer(pair, folders["target"], trust_remote_code)
    return pair


def load_configs(
    target: str | Path, draft: str | Path | None = None, trust_remote_code: bool = False
) -> tuple[PretrainedConfig, PretrainedConfig]:
    """Configurations of the target and the draft that load_pair would load, without their weights. Raises
    InputError as load_pair does."""
    if str(target).startswith(PREFIX):
        return pair_configs(parse_pair(str(target)))
    configs = [_config(role, folder, trust_remote_code) for role, folder in _folders(target, draft).items()]
    return configs[0], configs[1]


def default_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU and bfloat16 on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def make_pair(name: str, target: PreTrainedModel, draft: PreTrainedModel, fused: bool = True) -> Pair:
    """A pair of models that are in memory; both are switched to attend through the slot pool.

    fused: run the passes of models that FusedDecoder supports with it; the others, or with False all, run as
    transformers has them.

    Raises InputError when the vocabularies differ or a model needs what the pool does not offer.
    """
    sizes = [int(model.config.vocab_size) for model in (target, draft)]
    if sizes[0] != sizes[1]:
        raise InputError("draft", f"vocabulary of {sizes[1]}", f"the target has {sizes[0]}; use models of one family")
    for role, model in (("target", target), ("draft", draft)):
        _check_attention(role, model)
        model.set_attn_implementation(NAME)
        model.eval().requires_grad_(False)
    ends = target.generation_config.eos_token_id if target.generation_config else target.config.eos_token_id
    tokens = [] if ends is None else ends if isinstance(ends, list) else [ends]
    forwards = [_forward(model, fused) for model in (target, draft)]
    return Pair(name, target, draft, forwards[0], forwards[1], frozenset(int(token) for token in tokens))


def _forward(model: PreTrainedModel, fused: bool) -> Forward:
    return FusedDecoder(model) if fused and supports(model) else partial(forward, model)


def _folders(target: str | Path, draft: str | Path | None) -> dict[str, Path]:
    folder = EMBEDDED if str(target) == "embedded" else Path(target)
    if draft is not None:
        return {"target": folder, "draft": Path(draft)}
    if folder.is_dir() and not (folder / "draft").is_dir():
        raise InputError("draft", None, f"{folder} has no subfolder draft/; give the draft model's folder")
    return {"target": folder / "target", "draft": folder / "draft"}


def _config(role: str, folder: Path, trust: bool) -> PretrainedConfig:
    if not (folder / "config.json").is_file():
        raise InputError(role, str(folder), "no config.json there; give a model folder in Hugging Face format")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except Exception as error:  # transformers raises a dozen kinds for a bad folder
        raise InputError(role, str(folder), f"cannot be loaded ({str(error).splitlines()[0]})") from error


def _load(role: str, folder: Path, device: torch.device, dtype: torch.dtype, trust: bool) -> PreTrainedModel:
    _config(role, folder, trust)
    if not list(folder.glob("*.safetensors")):
        raise InputError(role, str(folder), "no .safetensors weights there; convert the model to safetensors")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options)
    except Exception as error:  # transformers raises a dozen kinds for a bad folder
        raise InputError(role, str(folder), f"cannot be loaded ({str(error).splitlines()[0]})") from error
    return model.to(device)  # type: ignore[arg-type]


def _check_attention(role: str, model: PreTrainedModel) -> None:
    config = model.config
    if not attends_fully(config):
        raise InputError(role, config.model_type, "only decoders with full attention in every layer are served")
    if not getattr(model, "_supports_attention_backend", True):
        raise InputError(role, config.model_type, "this architecture cannot take a custom attention function")


def _add_tokenizer(pair: Pair, folder: Path, trust: bool) -> None:
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        return
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    # verbose=False: a text longer than the context is no mistake, as prompts are pieces of one
    pair.encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    pair.decode = lambda tokens: str(tokenizer.decode(tokens))
