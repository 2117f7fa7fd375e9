"""Measure the embedded pair: bits per byte of each model, and how often the target accepts drafts."""

import inspect
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import DynamicCache, LlamaForCausalLM

from calibrate.acceptance import acceptance_table
from engines.workload.corpus import held_out_prompt
from experiments.embedded_pair.byte_level import CONTEXT, EOS, load


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy, in nats, of tokens [batch, length] under logits [batch, length, vocabulary]."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokens: torch.Tensor, windows: int) -> float:
    """Return the mean next-token cross entropy in bits over `windows` windows spread evenly over tokens [count]."""
    starts = torch.linspace(0, len(tokens) - CONTEXT - 1, windows, device=tokens.device).long()
    total = 0.0
    for chunk in starts.split(16):
        batch = tokens[chunk[:, None] + torch.arange(CONTEXT, device=tokens.device)].long()
        total += next_token_loss(model(batch, use_cache=False).logits, batch).item() * len(chunk)
    return total / windows / math.log(2)


@torch.no_grad()
def greedy_continuation(model: LlamaForCausalLM, prompts: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` greedy tokens after each of prompts [requests, tokens]: int64 [requests, count].

    Generation does not stop at <eos>.
    """
    cache = DynamicCache(config=model.config)
    name = (
        "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    )  # in older versions
    step, output = prompts, []
    for _ in range(count):
        logits = model(step, **{name: cache}, use_cache=True, logits_to_keep=1).logits
        step = logits[:, -1].argmax(-1, keepdim=True)
        output.append(step)
    return torch.cat(output, dim=1)


def live_positions(output: torch.Tensor) -> torch.Tensor:
    """Return which positions of output [requests, tokens] are not after its first <eos>: bool, same shape."""
    ended = (output == EOS).cumsum(1)
    return (ended == 0) | ((ended == 1) & (output == EOS))


@torch.no_grad()
def record_tapes(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, prompts: torch.Tensor, output_tokens: int
) -> list[np.ndarray]:
    """Return the acceptance tapes of greedy decoding: whether the draft agrees at each output position.

    The target continues prompts [requests, tokens]. One teacher-forced pass of the draft over prompt and output then
    gives the tapes, int8 [output tokens] each, cut at the first <eos>. Entry 0 belongs to the token from prefill.
    """
    output = greedy_continuation(target, prompts, output_tokens)
    sequences = torch.cat([prompts, output], dim=1)
    logits = draft(sequences, use_cache=False, logits_to_keep=output_tokens + 1).logits
    right = (logits[:, :-1].argmax(-1) == output).to(torch.int8).cpu().numpy()
    return [row[:length] for row, length in zip(right, live_positions(output).sum(1).tolist(), strict=True)]


def measure_acceptance(
    folder: Path,
    requests: int,
    prompt_tokens: int,
    output_tokens: int,
    device: torch.device | str = "cpu",
    root: Path | None = None,
) -> list[np.ndarray]:
    """Return `record_tapes` of the pair saved in `folder`, in float32, on held-out prompts of the library `root`."""
    target, draft = (load(folder / name, torch.float32, device) for name in ("target", "draft"))
    prompts = [list(held_out_prompt(0, index, prompt_tokens, root)) for index in range(requests)]
    return record_tapes(target, draft, torch.tensor(prompts, device=device), output_tokens)


def quality(
    folder: Path, text: torch.Tensor, held_out: torch.Tensor, sizes: tuple[int, int, int], root: Path | None
) -> list[str]:
    """Return the quality of the pair saved in `folder`, measured in float32, as lines of TOML.

    text, held_out: int16 tokens [count] that it was and was not trained on, on the device to measure on. sizes:
    requests, prompt tokens and output tokens to measure acceptance with; bits per byte use four windows of text per
    request. root: library folder of the prompts.
    """
    lines, windows = [], min(4 * sizes[0], len(held_out) // CONTEXT)
    for name in ("target", "draft"):
        model = load(folder / name, torch.float32, text.device)
        lines += [
            f"\n[{name}]",
            f"parameters = {model.num_parameters()}",
            f"training_bits_per_byte = {bits_per_byte(model, text, windows):.4f}",
            f"held_out_bits_per_byte = {bits_per_byte(model, held_out, windows):.4f}",
        ]
    tapes = measure_acceptance(folder, *sizes, text.device, root)
    lines += [
        "\n[acceptance]  # greedy, float32, held-out prompts; the length counts the target's own token",
        f"requests = {sizes[0]}",
        f"prompt_tokens = {sizes[1]}",
        f"output_tokens = {sizes[2]}",
        f"tape_mean = {np.concatenate(tapes).mean():.4f}",
    ]
    for draft_length in (4, 8):
        table = acceptance_table(tapes, draft_length)
        lines += [
            f"\n[acceptance.k{draft_length}]",
            f"rates = [{', '.join(f'{rate:.4f}' for rate in table['rate'])}]",
            f"acceptance_length = {1 + table['rate'].sum():.3f}",
            f"alpha = {table['alpha_mean'][0]:.4f}",
        ]
    return lines
