"""A draft and a target model that share a vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from logging import CRITICAL
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from engines.errors import InputError
from engines.live.model.attention import NAME, attends_fully, forward
from engines.live.model.fused import FusedDecoder, supports
from engines.live.model.kv_cache import count_of, positions_of
from engines.live.model.load_check import Forward, check_served, expected_logits
from engines.live.model.permutation import build_models, pair_configs
from engines.pairs.origin import Origin, Origins, model_folders, origins_of, pair_name, spec_origins
from engines.pairs.permutation import PREFIX, parse_pair

logging.disable_progress_bar()  # a library should not draw on the terminal
MOST_NAMED = 3  # weights named in an error


@dataclass
class Pair:
    """Two decoders on one device, ready to serve.

    target_forward, draft_forward: run one pass of the model over a packed batch.
    end_tokens: the tokens that end an output. origins: identify the models.
    encode, decode: convert text to token ids and back, None if the pair has no tokenizer.
    max_context: how many tokens both models can position.
    """

    name: str
    target: PreTrainedModel
    draft: PreTrainedModel
    target_forward: Forward = field(repr=False)
    draft_forward: Forward = field(repr=False)
    end_tokens: frozenset[int] = frozenset()
    origins: Origins = field(kw_only=True, repr=False)
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
    """Return the device of this name. Raises InputError if the machine does not have it."""
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise InputError("device", str(name), "no such kind of device; use cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError("device", str(name), "use cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if str(device) != str(name) or (device.index or 0) >= count:  # torch stores the index in a byte, which wraps
        raise InputError(
            "device",
            str(name),
            f"this machine has {count or 'no'} CUDA devices; use cpu{' or one of them' if count else ''}",
        )
    return torch.device("cuda", device.index or 0)


def load_pair(
    target: str | Path,
    draft: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    fused: bool = True,
) -> Pair:
    """Load a pair from Hugging Face folders, or build a permutation pair.

    target: folder of the target model, or of a pair (with subfolders target/ and draft/), "embedded" for the pair
    that ships with the project, or the name of a permutation pair (engines.pairs.permutation.parse_pair). Weights are
    read from safetensors only.
    dtype: default_dtype(device) unless given. fused: see make_pair.
    Raises InputError for a folder that is missing or incomplete, and for models that do not fit each other.
    """
    device = find_device(device)
    dtype = dtype or default_dtype(device)
    if str(target).startswith(PREFIX):
        spec = parse_pair(str(target))
        return make_pair(spec.name, *build_models(spec, device, dtype), fused, spec_origins(spec))
    folders = model_folders(target, draft)
    models = [_load(role, folder, device, dtype, trust_remote_code) for role, folder in folders.items()]
    pair = make_pair(pair_name(target, draft), models[0], models[1], fused, origins_of(target, draft))
    _add_tokenizer(pair, folders["target"], trust_remote_code)
    return pair


def load_configs(
    target: str | Path, draft: str | Path | None = None, trust_remote_code: bool = False
) -> tuple[PretrainedConfig, PretrainedConfig]:
    """Return the configurations of the target and the draft that load_pair would load. Weights are not read.

    Raises InputError as load_pair does.
    """
    if str(target).startswith(PREFIX):
        return pair_configs(parse_pair(str(target)))
    configs = [_config(role, folder, trust_remote_code) for role, folder in model_folders(target, draft).items()]
    return configs[0], configs[1]


def default_dtype(device: torch.device) -> torch.dtype:
    """Return float32 for a CPU and bfloat16 for a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def make_pair(
    name: str, target: PreTrainedModel, draft: PreTrainedModel, fused: bool = True, origins: Origins | None = None
) -> Pair:
    """Make a pair of two models that are in memory. Both are switched to attention over the slot pool.

    fused: run the models that FusedDecoder supports with it, and others with transformers. False runs all with
    transformers. origins: where the models come from; by default they are named after their family.

    Raises InputError if the vocabularies differ, or if a model gives other logits through the slot pool than by
    itself (engines.live.model.load_check).
    """
    sizes = [count_of(model.config, "vocab_size") for model in (target, draft)]
    if sizes[0] != sizes[1]:
        raise InputError("draft", f"vocabulary of {sizes[1]}", f"the target has {sizes[0]}; use models of one family")
    forwards = [_serving(role, model, fused) for role, model in (("target", target), ("draft", draft))]
    ends = target.generation_config.eos_token_id if target.generation_config else target.config.eos_token_id
    tokens = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return Pair(
        name, target, draft, forwards[0], forwards[1], frozenset(int(token) for token in tokens),
        origins=origins or Origins(origin_of(target), origin_of(draft)),
    )  # fmt: skip


def _serving(role: str, model: PreTrainedModel, fused: bool) -> Forward:
    """Return the function that runs a pass of a model over a packed batch, after checking its logits."""
    _check_attention(role, model)
    model.eval().requires_grad_(False)
    expected = expected_logits(role, model)
    with _quiet():
        model.set_attn_implementation(NAME)
    forward = _forward(model, fused)
    check_served(role, model, forward, expected)
    return forward


def origin_of(model: PreTrainedModel) -> Origin:
    """Return the origin of a model that was not loaded from a folder.

    It has the name of the model's family, and a digest of its configuration and the middle of every parameter.
    """
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        flat = parameter.detach().reshape(-1)
        digest.update(flat[len(flat) // 2 :][:64].float().cpu().numpy().tobytes())
    return Origin(str(model.config.model_type), digest.hexdigest())


def _forward(model: PreTrainedModel, fused: bool) -> Forward:
    return FusedDecoder(model) if fused and supports(model) else partial(forward, model)


def _config(role: str, folder: Path, trust: bool) -> PretrainedConfig:
    if not (folder / "config.json").is_file():
        raise InputError(role, str(folder), "no config.json there; give a model folder in Hugging Face format")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except Exception as error:  # transformers raises a dozen kinds for a bad folder
        raise InputError(role, str(folder), f"cannot be loaded ({_first_line(error)})") from error


def _load(role: str, folder: Path, device: torch.device, dtype: torch.dtype, trust: bool) -> PreTrainedModel:
    _config(role, folder, trust)
    if not list(folder.glob("*.safetensors")):
        raise InputError(role, str(folder), "no .safetensors weights there; convert the model to safetensors")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust}
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
                **options,
            )  # fmt: skip
    except Exception as error:  # transformers raises a dozen kinds for a bad folder
        raise InputError(role, str(folder), f"cannot be loaded ({_first_line(error)})") from error
    model, found = loaded
    _check_weights(role, folder, found)
    return cast(PreTrainedModel, model.to(device))


def _check_weights(role: str, folder: Path, found: Mapping[str, Any]) -> None:
    """Raise InputError unless the files had exactly the weights of the model, with the right shapes.

    transformers would use random weights for those that are missing.
    """
    mismatched = [each if isinstance(each, str) else each[0] for each in found.get("mismatched_keys", ())]
    kinds = {
        "missing": found.get("missing_keys", ()), "of another shape": mismatched,
        "unknown to the model": found.get("unexpected_keys", ()),
    }  # fmt: skip
    for kind, names in kinds.items():
        if names:
            some = ", ".join(sorted(names)[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
            remedy = f"{len(names)} weights are {kind} ({some}); fetch the folder again, weights and config.json"
            raise InputError(role, str(folder), remedy)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers during the block, since the raised errors contain what matters."""
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_attention(role: str, model: PreTrainedModel) -> None:
    config = model.config
    if not attends_fully(config):
        raise InputError(role, config.model_type, "only decoders with full attention in every layer are served")
    if not getattr(model, "_supports_attention_backend", True):
        raise InputError(role, config.model_type, "this architecture cannot take a custom attention function")


def _add_tokenizer(pair: Pair, folder: Path, trust: bool) -> None:
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        return
    remedy = "fetch its files again, or remove them to use prompts of random tokens"
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        special = set(tokenizer.all_special_ids)
        largest = max(i for i in (*tokenizer.get_vocab().values(), -1) if i not in special)
        tokens = tokenizer.encode("x = 1\n", add_special_tokens=False, verbose=False)
        str(tokenizer.decode(tokens))
    except Exception as error:  # transformers and tokenizers raise a dozen kinds for damaged files
        raise InputError("tokenizer", str(folder), f"cannot be used ({_first_line(error)}); {remedy}") from error
    if not tokens:
        raise InputError("tokenizer", str(folder), f"turns text into no tokens; {remedy}")
    if largest >= pair.vocabulary:
        said = f"has a token {largest}, but the models' vocabulary has {pair.vocabulary} tokens"
        raise InputError("tokenizer", str(folder), f"{said}; {remedy}")
    # verbose=False: no warning about text longer than the context, which is cut into prompts
    pair.encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    pair.decode = lambda tokens: str(tokenizer.decode(tokens))
