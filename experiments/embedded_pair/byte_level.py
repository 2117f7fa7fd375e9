"""Build, save and load the byte-level Llama models of the embedded pair and their tokenizer."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engines.live.model.permutation import shape_config
from engines.pairs.shapes import find_shape

BOS, EOS, PAD = 256, 257, 258
# Five unused IDs round the vocabulary up to a multiple of 8, which keeps the last matrix product aligned.
SPECIAL_TOKENS = ["<bos>", "<eos>", "<pad>", *(f"<unused{i}>" for i in range(5))]
CONTEXT = 2048


def build_model(shape: str, device: torch.device) -> LlamaForCausalLM:
    """A float32 Llama of that shape (engines.pairs.shapes) on `device`."""
    return LlamaForCausalLM(shape_config(find_shape(shape))).to(device)  # type: ignore[arg-type]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token IDs are byte values. Special IDs follow, and no text encodes to one.

    ByteLevel maps printable bytes to themselves and the other 68 to the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    vocabulary = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False, split_special_tokens=True,
    )  # fmt: skip


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write weights (bfloat16), configuration, generation defaults (greedy) and tokenizer to `folder`."""
    model.generation_config = GenerationConfig(do_sample=False, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by the owner only
    build_tokenizer().save_pretrained(folder)


def load(folder: Path, dtype: torch.dtype, device: torch.device | str) -> LlamaForCausalLM:
    """Load the model saved in `folder`, ready to run on `device`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to(device).eval()  # type: ignore[arg-type]
