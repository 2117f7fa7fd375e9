"""Train the embedded pair: two byte-level Llama models that know Python's standard library, and nothing else.

The target learns the text. The draft learns the text, then the target's own greedy continuations of training
prompts (sequence-level distillation, Kim and Rush 2016, with the target's distribution as soft labels): what a
draft is for is to agree with its target in free-running generation. Every phase runs for a number of seconds
instead of steps, so that one command takes a known time on any device:

    python -m experiments.train_embedded_pair --target-seconds 210

It writes `target/` and `draft/` in Hugging Face format and `training.toml`, which says how good the pair is.
"""

import argparse
import datetime
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from calibrate.acceptance import acceptance_table
from engines.corpus import held_out_prompt, is_held_out, read_utf8, stdlib_files, stdlib_root

BOS, EOS, PAD = 256, 257, 258
# Five unused ids round the vocabulary up to a multiple of 8, which keeps the last matrix product aligned.
SPECIAL_TOKENS = ["<bos>", "<eos>", "<pad>", *(f"<unused{i}>" for i in range(5))]
CONTEXT = 2048
POOL_TOKENS = 512
OUTPUT_FOLDER = Path(__file__).resolve().parents[1] / "engines" / "live" / "embedded"


def build_model(hidden: int, intermediate: int, layers: int, device: torch.device) -> LlamaForCausalLM:
    """A float32 Llama of these sizes on `device`, with 4 query heads on 2 key-value heads."""
    config = LlamaConfig(
        vocab_size=256 + len(SPECIAL_TOKENS),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).to(device)  # type: ignore[arg-type]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose token id is the byte's value; special ids follow, and no text ever encodes to one.

    ByteLevel names printable bytes by themselves and the 68 others by the characters from U+0100 on.
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
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def load_tokens(root: Path | None, *, held_out: bool, device: torch.device) -> torch.Tensor:
    """The training or the held-out files as one int16 tensor [tokens]: <bos>, the file's bytes, <eos>, ..."""
    pieces = []
    for name, path in stdlib_files(root, tests=True).items():
        if is_held_out(name) == held_out and (content := read_utf8(path)):
            pieces.append(torch.tensor([BOS, *content, EOS], dtype=torch.int16))
    return torch.cat(pieces).to(device)


def draw_windows(tokens: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """`count` windows of `length` tokens at uniformly drawn places of `tokens`: int64 [count, length]."""
    starts = torch.randint(len(tokens) - length, (count, 1), device=tokens.device)
    return tokens[starts + torch.arange(length, device=tokens.device)].long()


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats of tokens [batch, length] under logits [batch, length, vocabulary]."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def train(model: LlamaForCausalLM, loss_of_step: Callable[[], torch.Tensor], seconds: float, peak: float) -> int:
    """AdamW for `seconds`, linear warm-up to learning rate `peak`, then cosine decay; returns the steps taken."""
    device = model.device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=device.type == "cuda"
    )
    model.train()
    if device.type == "cuda":
        torch.compiler.reset()
        for layer in model.model.layers:  # alone, so that the causal mask stays implicit and attention fused
            layer.compile(dynamic=False)
    with torch.autocast(device.type, torch.bfloat16):
        loss_of_step().backward()  # compiles, outside the clock
    optimizer.zero_grad()
    started = time.monotonic()
    steps, progress = 0, 0.0
    while progress < 1:
        rate = peak * min(progress / 0.03, 0.5 + 0.5 * math.cos(math.pi * progress), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of_step()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps % 500 == 0 or steps == 1:
            print(f"  step {steps}: {loss.item() / math.log(2):.3f} bits, {time.monotonic() - started:.0f} s")
        if device.type == "cuda" and steps % 8 == 0:
            torch.cuda.synchronize()  # else the host runs ahead and the clock says too little
        progress = (time.monotonic() - started) / seconds
    model.eval()
    return steps


@torch.no_grad()
def greedy_continuation(model: LlamaForCausalLM, prompts: torch.Tensor, count: int) -> torch.Tensor:
    """`count` greedy tokens after each of prompts [requests, tokens]: int64 [requests, count], <eos> or not."""
    cache = DynamicCache(config=model.config)
    step, output = prompts, []
    for _ in range(count):
        logits = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        step = logits[:, -1].argmax(-1, keepdim=True)
        output.append(step)
    return torch.cat(output, dim=1)


def live_positions(output: torch.Tensor) -> torch.Tensor:
    """Which positions of output [requests, tokens] come no later than its first <eos>: bool, same shape."""
    ended = (output == EOS).cumsum(1)
    return (ended == 0) | ((ended == 1) & (output == EOS))


@torch.no_grad()
def record_tapes(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, prompts: torch.Tensor, output_tokens: int
) -> list[np.ndarray]:
    """Acceptance tapes of greedy decoding: is the draft's choice right at each output position of the target?

    The target continues prompts [requests, tokens]; one teacher-forced pass of the draft over prompt and output
    then gives the tapes, int8 [output tokens] each, cut at the first <eos>. Entry 0 belongs to prefill's token.
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
    """`record_tapes` of the pair saved under `folder`, in float32, on held-out prompts of the library `root`."""
    target, draft = (load(folder / name, torch.float32, device) for name in ("target", "draft"))
    prompts = [list(held_out_prompt(0, index, prompt_tokens, root)) for index in range(requests)]
    return record_tapes(target, draft, torch.tensor(prompts, device=device), output_tokens)


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokens: torch.Tensor, windows: int) -> float:
    """Mean next-token cross entropy in bits over `windows` windows spread evenly over tokens [count]."""
    starts = torch.linspace(0, len(tokens) - CONTEXT - 1, windows, device=tokens.device).long()
    total = 0.0
    for chunk in starts.split(16):
        batch = tokens[chunk[:, None] + torch.arange(CONTEXT, device=tokens.device)].long()
        total += next_token_loss(model(batch, use_cache=False).logits, batch).item() * len(chunk)
    return total / windows / math.log(2)


def distil_pool(target: LlamaForCausalLM, tokens: torch.Tensor, requests: int, seconds: float) -> torch.Tensor:
    """Training prompts with the target's greedy continuations, made for `seconds`, `requests` at a time.

    Returns int16 [rows, POOL_TOKENS + 1]; the last column is the row's prompt length in tokens, 64 to 256.
    """
    rows: list[torch.Tensor] = []
    started = time.monotonic()
    while not rows or time.monotonic() - started < seconds:
        length = (64, 128, 192, 256)[len(rows) % 4]
        prompts = draw_windows(tokens, requests, length)
        output = greedy_continuation(target, prompts, POOL_TOKENS - length)
        rows.append(torch.cat([prompts, output, torch.full_like(prompts[:, :1], length)], dim=1).short())
    return torch.cat(rows)


def distillation_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """How far the draft is from the target on rows of the pool, int16 [batch, POOL_TOKENS + 1], in nats.

    KL(target || draft) over prompt and output, plus the draft's cross entropy on the target's greedy choices.
    """
    tokens, lengths = rows[:, :-1].long(), rows[:, -1:].long()
    with torch.no_grad():
        teacher = target(tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    student = draft(tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    choices = tokens[:, 1:]
    live = live_positions(choices)
    generated = live & (torch.arange(1, POOL_TOKENS, device=rows.device) >= lengths)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    surprise = -student.gather(-1, choices[..., None])[..., 0]
    soft = (divergence * live).sum() / live.sum()
    hard = (surprise * generated).sum() / generated.sum().clamp(min=1)
    return soft + hard


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write weights (bfloat16), configuration, generation defaults (greedy) and tokenizer to `folder`."""
    model.generation_config = GenerationConfig(do_sample=False, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    build_tokenizer().save_pretrained(folder)


def load(folder: Path, dtype: torch.dtype, device: torch.device | str) -> LlamaForCausalLM:
    """The model saved under `folder`, ready to run on `device`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to(device).eval()  # type: ignore[arg-type]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded byte-level draft and target models.")
    parser.add_argument("--target-seconds", type=float, default=200, help="training time of the target")
    parser.add_argument("--draft-seconds", type=float, default=30, help="training time of the draft on text")
    parser.add_argument("--pool-seconds", type=float, default=40, help="time to generate continuations")
    parser.add_argument("--distil-seconds", type=float, default=60, help="training time of the draft on them")
    parser.add_argument("--batch", type=int, default=32, help=f"windows of {CONTEXT} tokens a step")
    parser.add_argument("--pool-requests", type=int, default=2048, help="continuations generated at a time")
    parser.add_argument("--requests", type=int, default=128, help="held-out prompts to measure acceptance on")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--library", type=Path, help="standard library folder (default: the running one)")
    parser.add_argument("--out", type=Path, default=OUTPUT_FOLDER)
    return parser.parse_args()


def main() -> None:
    """Train, save, and measure what was saved."""
    options = parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    text = load_tokens(options.library, held_out=False, device=device)
    held_out = load_tokens(options.library, held_out=True, device=device)
    folders = {name: options.out / name for name in ("target", "draft")}
    print(f"{len(text)} training tokens, {len(held_out)} held out", flush=True)

    def on_text(model: LlamaForCausalLM) -> torch.Tensor:
        batch = draw_windows(text, options.batch, CONTEXT)
        return next_token_loss(model(batch, use_cache=False).logits, batch)

    steps = {}
    model = build_model(hidden=256, intermediate=768, layers=6, device=device)
    steps["target_steps"] = train(model, lambda: on_text(model), options.target_seconds, peak=2e-3)
    save(model, folders["target"])
    target = load(folders["target"], torch.bfloat16, device)

    draft = build_model(hidden=128, intermediate=384, layers=2, device=device)
    steps["draft_steps"] = train(draft, lambda: on_text(draft), options.draft_seconds, peak=4e-3)
    pool = distil_pool(target, text, options.pool_requests, options.pool_seconds)
    print(f"{len(pool)} continuations", flush=True)
    rows = options.batch * CONTEXT // POOL_TOKENS
    steps["distil_steps"] = train(
        draft,
        lambda: distillation_loss(draft, target, pool[torch.randint(len(pool), (rows,), device=device)]),
        options.distil_seconds,
        peak=2e-3,
    )
    save(draft, folders["draft"])
    counts = {**steps, "pool_sequences": len(pool)}
    report = describe(options, device, text, held_out, folders, counts)
    (options.out / "training.toml").write_text(report)
    print(report)


def describe(
    options: argparse.Namespace,
    device: torch.device,
    text: torch.Tensor,
    held_out: torch.Tensor,
    folders: dict[str, Path],
    counts: dict[str, int],
) -> str:
    """Measure the saved pair in float32 and describe it, with how it came about, as TOML."""
    windows = min(512, len(held_out) // CONTEXT)
    lines = [
        f"date = {datetime.datetime.now(datetime.UTC).date()}",
        f'device = "{torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}"',
        f'command = "python -m experiments.train_embedded_pair {" ".join(sys.argv[1:])}"',
        f'python = "{platform.python_version()}"',
        *(f'{library.__name__} = "{library.__version__}"' for library in (torch, transformers, tokenizers)),
        f'library = "{(options.library or stdlib_root()).name}"',
        f"training_bytes = {int((text < BOS).sum())}",
        f"held_out_bytes = {int((held_out < BOS).sum())}",
        *(f"{name} = {count}" for name, count in counts.items()),
    ]
    for name, folder in folders.items():
        model = load(folder, torch.float32, device)
        lines += [
            f"\n[{name}]",
            f"parameters = {model.num_parameters()}",
            f"training_bits_per_byte = {bits_per_byte(model, text, windows):.4f}",
            f"held_out_bits_per_byte = {bits_per_byte(model, held_out, windows):.4f}",
        ]
    sizes = (options.requests, options.prompt_tokens, options.output_tokens)
    tapes = measure_acceptance(options.out, *sizes, device, options.library)
    lines += [
        "\n[acceptance]  # greedy, float32, held-out prompts; the length counts the target's own token",
        f"requests = {options.requests}",
        f"prompt_tokens = {options.prompt_tokens}",
        f"output_tokens = {options.output_tokens}",
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
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
