"""Train the embedded pair: two byte-level Llama models of Python's standard library.

The target learns the text. The draft learns the text, then the target's own greedy continuations of training
prompts (sequence-level distillation, Kim and Rush 2016, with the target's distribution as soft labels): what a
draft is for is to agree with its target in free-running generation. Every phase runs for a number of seconds
instead of steps, so that one command takes a known time on any device. What is saved is `target/` and `draft/` in
Hugging Face format and `training.toml`, which says how good the pair is.
"""

import datetime
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import tomli_w
import torch
import transformers
from transformers import LlamaForCausalLM

from calibrate.stage_costs import Progress
from engines.errors import InputError, require_positive, require_whole
from engines.storage.files import replaced
from engines.workload.corpus import is_held_out, read_utf8, stdlib_files, stdlib_root
from experiments.embedded_pair.byte_level import BOS, CONTEXT, EOS, build_model, load, save
from experiments.embedded_pair.quality import greedy_continuation, live_positions, next_token_loss, quality

POOL_TOKENS = 512
REPORTED = 8  # steps between reports; the host waits there, else it runs ahead and the clock says too little


@dataclass(frozen=True)
class Training:
    """What is trained, and on what. *_seconds: how long each phase may take. batch: windows of a step.
    pool_requests: continuations that are generated at a time. requests, prompt_tokens, output_tokens: what acceptance
    is measured on. library: folder of the standard library; None: that of the running Python.

    Raises InputError for what cannot be trained on or measured.
    """

    target_seconds: float
    draft_seconds: float
    pool_seconds: float
    distil_seconds: float
    batch: int
    pool_requests: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    library: Path | None = None

    def __post_init__(self) -> None:
        for name in ("target_seconds", "draft_seconds", "pool_seconds", "distil_seconds"):
            require_positive(name, getattr(self, name))
        for name in ("batch", "pool_requests", "requests", "prompt_tokens", "output_tokens"):
            require_whole(name, getattr(self, name), 1)
        both = self.prompt_tokens, self.output_tokens
        if sum(both) > CONTEXT:
            raise InputError("prompt_tokens, output_tokens", both, f"use {CONTEXT} or fewer together")
        sizes: dict[bool, list[int]] = {True: [0], False: [0]}
        for name, path in stdlib_files(self.library, tests=True).items():
            sizes[is_held_out(name)].append(path.stat().st_size)
        if min(map(sum, sizes.values())) <= CONTEXT or max(sizes[True]) < self.prompt_tokens:
            remedy = "too few Python sources are there to train and to measure on; give a standard library's folder"
            raise InputError("library", str(self.library or stdlib_root()), remedy)


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


def train(
    name: str, model: LlamaForCausalLM, loss_of_step: Callable[[], torch.Tensor], seconds: float, peak: float,
    report: Progress,
) -> int:  # fmt: skip
    """AdamW for `seconds`, linear warm-up to learning rate `peak`, then cosine decay; returns the steps taken."""
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
        if steps % REPORTED == 0:
            report(f"{name}, {loss.item() / math.log(2):.3f} bits", progress)
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


def train_pair(training: Training, out: Path, device: torch.device, command: str, progress: Progress) -> str:
    """Train, save, and measure what was saved; returns what training.toml says."""
    torch.manual_seed(0)
    text = load_tokens(training.library, held_out=False, device=device)
    held_out = load_tokens(training.library, held_out=True, device=device)

    def on_text(model: LlamaForCausalLM) -> torch.Tensor:
        batch = draw_windows(text, training.batch, CONTEXT)
        return next_token_loss(model(batch, use_cache=False).logits, batch)

    model = build_model("embedded-target", device)
    counts = {"target_steps": train("target", model, lambda: on_text(model), training.target_seconds, 2e-3, progress)}
    save(model, out / "target")
    target = load(out / "target", torch.bfloat16, device)

    draft = build_model("embedded-draft", device)
    counts["draft_steps"] = train("draft", draft, lambda: on_text(draft), training.draft_seconds, 4e-3, progress)
    progress("continuations", 0.0)
    pool = distil_pool(target, text, training.pool_requests, training.pool_seconds)
    rows = training.batch * CONTEXT // POOL_TOKENS

    def on_pool() -> torch.Tensor:
        return distillation_loss(draft, target, pool[torch.randint(len(pool), (rows,), device=device)])

    counts["distil_steps"] = train("distillation", draft, on_pool, training.distil_seconds, 2e-3, progress)
    save(draft, out / "draft")
    counts["pool_sequences"] = len(pool)
    progress("measuring", 1.0)
    said = describe(training, out, text, held_out, counts, command)
    with replaced(out / "training.toml") as beside:
        beside.write_text(said, encoding="utf-8")
    return said


def describe(
    training: Training, out: Path, text: torch.Tensor, held_out: torch.Tensor, counts: dict[str, int], command: str
) -> str:
    """Return how the saved pair was trained, and its quality, as TOML."""
    lines = [
        f"date = {datetime.datetime.now(datetime.UTC).date()}",
        f'device = "{torch.cuda.get_device_name(text.device) if text.is_cuda else "cpu"}"',
        tomli_w.dumps({"command": command}).strip(),
        f'python = "{platform.python_version()}"',
        *(f'{library.__name__} = "{library.__version__}"' for library in (torch, transformers, tokenizers)),
        f'library = "{(training.library or stdlib_root()).name}"',
        f"training_bytes = {int((text < BOS).sum())}",
        f"held_out_bytes = {int((held_out < BOS).sum())}",
        *(f"{name} = {count}" for name, count in counts.items()),
    ]
    sizes = (training.requests, training.prompt_tokens, training.output_tokens)
    lines += quality(out, text, held_out, sizes, training.library)
    return "\n".join(lines) + "\n"
