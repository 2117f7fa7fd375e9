"""Train the embedded pair: two byte-level Llama models of Python's standard library.

The target is trained on the text. The draft is trained on the text, then on the target's greedy continuations of
training prompts (sequence-level distillation, Kim and Rush 2016, with the target's distribution as soft labels),
because it has to agree with the target in free-running generation. Every phase runs for a number of seconds instead
of steps, so that one command takes a known time on any device:

    python -m experiments.embedded_pair.train --target-seconds 210

It writes `target/` and `draft/` in Hugging Face format, and `training.toml` with the quality of the pair.
"""

import argparse
import datetime
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import LlamaForCausalLM

from engines.errors import InputError, require_positive, require_whole
from engines.workload.corpus import is_held_out, read_utf8, stdlib_files, stdlib_root
from experiments.embedded_pair.byte_level import BOS, CONTEXT, EOS, build_model, load, save
from experiments.embedded_pair.quality import greedy_continuation, live_positions, next_token_loss, quality
from experiments.program.ending import in_one_line
from experiments.program.outputs import check_output

POOL_TOKENS = 512
OUTPUT_FOLDER = Path(__file__).resolve().parents[2] / "engines" / "live" / "embedded"


def load_tokens(root: Path | None, *, held_out: bool, device: torch.device) -> torch.Tensor:
    """Return the training or held-out files as one int16 tensor [tokens]: <bos>, the file's bytes, <eos>, ..."""
    jobs = []
    for name, path in stdlib_files(root, tests=True).items():
        if is_held_out(name) == held_out and (content := read_utf8(path)):
            jobs.append(torch.tensor([BOS, *content, EOS], dtype=torch.int16))
    return torch.cat(jobs).to(device)


def draw_windows(tokens: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Return `count` windows of `length` tokens at uniformly drawn positions of `tokens`: int64 [count, length]."""
    starts = torch.randint(len(tokens) - length, (count, 1), device=tokens.device)
    return tokens[starts + torch.arange(length, device=tokens.device)].long()


def train(model: LlamaForCausalLM, loss_of_step: Callable[[], torch.Tensor], seconds: float, peak: float) -> int:
    """Train with AdamW for `seconds`, with linear warm-up to rate `peak`, then cosine decay. Returns the steps."""
    device = model.device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=device.type == "cuda"
    )
    model.train()
    if device.type == "cuda":
        torch.compiler.reset()
        for layer in model.model.layers:  # layer by layer, so that the causal mask stays implicit, attention fused
            layer.compile(dynamic=False)
    with torch.autocast(device.type, torch.bfloat16):
        loss_of_step().backward()  # compile before the clock starts
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
            torch.cuda.synchronize()  # otherwise the host runs ahead of the device and the clock reads too little
        progress = (time.monotonic() - started) / seconds
    model.eval()
    return steps


def distil_pool(target: LlamaForCausalLM, tokens: torch.Tensor, requests: int, seconds: float) -> torch.Tensor:
    """Generate greedy continuations of training prompts for `seconds`, `requests` at a time.

    Returns int16 [rows, POOL_TOKENS + 1]; the last column is the prompt length of the row in tokens, 64 to 256.
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
    """Return the loss of the draft, in nats, on rows of the pool, int16 [batch, POOL_TOKENS + 1].

    It is KL(target || draft) over prompt and output, plus the draft's cross entropy on the target's greedy choices.
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


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded byte-level draft and target models.")
    parser.add_argument("--target-seconds", type=float, default=200, help="training time of the target")
    parser.add_argument("--draft-seconds", type=float, default=30, help="training time of the draft on text")
    parser.add_argument("--pool-seconds", type=float, default=40, help="time to generate continuations")
    parser.add_argument("--distil-seconds", type=float, default=60, help="training time of the draft on them")
    parser.add_argument("--batch", type=int, default=32, help=f"windows of {CONTEXT} tokens per step")
    parser.add_argument("--pool-requests", type=int, default=2048, help="continuations generated at a time")
    parser.add_argument("--requests", type=int, default=128, help="held-out prompts to measure acceptance on")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--library", type=Path, help="standard library folder (default: the running one)")
    parser.add_argument("--out", type=Path, default=OUTPUT_FOLDER)
    return parser.parse_args()


def check(options: argparse.Namespace) -> None:
    """Raise InputError, before any work, for options that cannot be trained with or measured."""
    for name in ("target_seconds", "draft_seconds", "pool_seconds", "distil_seconds"):
        require_positive(name, getattr(options, name))
    for name in ("batch", "pool_requests", "requests", "prompt_tokens", "output_tokens"):
        require_whole(name, getattr(options, name), 1)
    both = options.prompt_tokens, options.output_tokens
    if sum(both) > CONTEXT:
        raise InputError("prompt_tokens, output_tokens", both, f"use at most {CONTEXT} together")
    sizes: dict[bool, list[int]] = {True: [0], False: [0]}
    for name, path in stdlib_files(options.library, tests=True).items():
        sizes[is_held_out(name)].append(path.stat().st_size)
    if min(map(sum, sizes.values())) <= CONTEXT or max(sizes[True]) < options.prompt_tokens:
        remedy = "too few Python sources to train and measure on; give a standard library folder"
        raise InputError("library", str(options.library or stdlib_root()), remedy)
    check_output("out", options.out, ["training.toml"])


@in_one_line
def main() -> int:
    """Train the pair, save it and measure what was saved."""
    options = parse_options()
    check(options)
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
    report = describe(options, device, text, held_out, counts)
    (options.out / "training.toml").write_text(report)
    print(report)
    return 0


def describe(
    options: argparse.Namespace,
    device: torch.device,
    text: torch.Tensor,
    held_out: torch.Tensor,
    counts: dict[str, int],
) -> str:
    """Return how the saved pair was trained, and its quality, as TOML."""
    lines = [
        f"date = {datetime.datetime.now(datetime.UTC).date()}",
        f'device = "{torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}"',
        f'command = "python -m experiments.embedded_pair.train {" ".join(sys.argv[1:])}"',
        f'python = "{platform.python_version()}"',
        *(f'{library.__name__} = "{library.__version__}"' for library in (torch, transformers, tokenizers)),
        f'library = "{(options.library or stdlib_root()).name}"',
        f"training_bytes = {int((text < BOS).sum())}",
        f"held_out_bytes = {int((held_out < BOS).sum())}",
        *(f"{name} = {count}" for name, count in counts.items()),
    ]
    sizes = (options.requests, options.prompt_tokens, options.output_tokens)
    lines += quality(options.out, text, held_out, sizes, options.library)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
