"""How is the demo model trained? From nothing, on generated data, in about half an hour on two cores.

Two phases, because the second alone doesn't get anywhere for hours. First, random tokens that repeat after a distance
that nobody can know: the only way to guess the repetition is to look back to where the same token came before, so heads
form that look things up by content. With one fixed distance they would learn the distance instead. Then chats, with
the loss on the answers alone; in the last three descents, some have tools. ``python -m engine.demo.train`` does it all;
with ``--continue FOLDER`` only those descents of `TrainConfig.chat_steps` that the model in the folder hasn't had.
"""

import argparse
import copy
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from engine.demo import MODEL_FOLDER
from engine.demo.conversations import Conversation, conversations
from engine.demo.tokenizer import BEGIN, END, PAD, SPECIAL, ChatEncoder, save_tokenizer, train_tokenizer
from engine.demo.tool_chats import all_chats
from kernels.linear import native_bf16

_IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The model's shape and its training; token counts are per step, padding included."""

    vocab_size: int = 3072
    hidden: int = 256
    intermediate: int = 704
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    context: int = 2048
    corpus_chats: int = 3000
    copy_steps: int = 600
    copy_tokens: int = 2048
    copy_until: float = 0.25
    copy_short_steps: int = 300
    copy_longest: int = 128
    chat_steps: tuple[int, ...] = (1200, 800, 800, 600, 1200, 800)
    chat_peaks: tuple[float, ...] = (1, 1 / 2, 0.33, 1 / 4, 1 / 2, 1 / 2)
    tools_from: int = 3
    tool_tokens: int = 2048
    tool_share: float = 0.4
    shape_share: float = 0.1
    chat_tokens: int = 4096
    learning_rate: float = 2e-3
    final_rate: float = 0.05
    weight_decay: float = 0.01
    ramp: int = 50
    report_every: int = 20
    save_every: int = 150


@dataclass(frozen=True, slots=True)
class Batch:
    """``ids`` [rows, length]; ``labels`` the same shape: the token that follows, or -100 where no loss is taken."""

    ids: Tensor
    labels: Tensor


def build_model(config: TrainConfig, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A Llama model of ``config``'s shape with fresh weights, drawn by `initialize`."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.token_to_id(BEGIN),
            eos_token_id=tokenizer.token_to_id(END),
            pad_token_id=tokenizer.token_to_id(PAD),
        )
    )
    initialize(model)
    return model


@torch.no_grad()
def initialize(model: LlamaForCausalLM) -> None:
    """Draw matrices with variance 1/inputs, embeddings with variance 1; what writes to residuals or logits starts at 0.

    The usual 0.02 for everything is meant for much wider models. Measured at 256 wide, 1,024 tokens in the
    vocabulary, distances of 4 to 8, 2,048 tokens a step: a copying loss of 2.6 after 320 steps from 0.02, of less than
    0.9 after 200 from here.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            parameter.zero_()
        else:
            inputs = 1 if "embed_tokens" in name else parameter.shape[1]
            parameter.normal_(std=inputs**-0.5)


def copy_batches(config: TrainConfig, vocab_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Endless rows of random tokens that repeat once; the loss is on the repetition.

    Each row has its own distance, from 4 to a longest that is 8 for ``copy_short_steps`` steps, because few candidates
    make the right one easy to find, and then doubles every 30 steps up to ``copy_longest``.
    """
    for step in count():
        doublings = max(0, step - config.copy_short_steps + 30) // 30
        longest = min(8 * 2 ** min(doublings, 20), config.copy_longest, config.context // 2)
        rows = max(1, config.copy_tokens // (2 * longest))
        ids = torch.randint(len(SPECIAL), vocab_size, (rows, 2 * longest), generator=generator)
        distance = torch.randint(4, longest + 1, (rows, 1), generator=generator)
        place = torch.arange(2 * longest).expand_as(ids)
        repeats = (place >= distance) & (place < 2 * distance)
        ids = torch.where(repeats, ids.gather(1, (place - distance).clamp(min=0)), ids)
        labels = torch.full_like(ids, _IGNORED)
        asked = repeats[:, :-1] & repeats[:, 1:]
        labels[:, :-1][asked] = ids[:, 1:][asked]
        yield Batch(ids, labels)


def chat_batches(
    config: TrainConfig, encoder: ChatEncoder, seed: int, source: Iterator[Conversation]
) -> Iterator[Batch]:
    """Endless batches of chats of similar length; the loss is on the answers and their end marks."""
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        chats = [encoder.encode(chat.messages, chat.tools) for chat in islice(source, 512)]
        chats = [(ids[: config.context], answers[: config.context]) for ids, answers in chats]
        chats = sorted((chat for chat in chats if any(chat[1])), key=lambda chat: len(chat[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for chat in chats:
            if groups[-1] and len(chat[0]) * (len(groups[-1]) + 1) > config.chat_tokens:
                groups.append([])
            groups[-1].append(chat)
        for index in torch.randperm(len(groups), generator=shuffle).tolist():
            yield _pad(groups[index])


def _pad(chats: list[tuple[list[int], list[bool]]]) -> Batch:
    """Rows padded on the right: attention is causal, so what stands before the padding doesn't see it."""
    length = max(len(ids) for ids, _ in chats)
    ids = torch.zeros(len(chats), length, dtype=torch.long)
    labels = torch.full((len(chats), length), _IGNORED)
    for row, (tokens, answers) in enumerate(chats):
        line = torch.tensor(tokens)
        ids[row, : len(tokens)] = line
        labels[row, : len(tokens) - 1] = torch.where(torch.tensor(answers[1:]), line[1:], _IGNORED)
    return Batch(ids, labels)


def rate(step: int, steps: int, config: TrainConfig) -> float:
    """The learning rate as a share of its peak: a linear ramp, then half a cosine down to ``final_rate``."""
    if step < config.ramp:
        return (step + 1) / config.ramp
    done = min(1.0, (step - config.ramp) / max(1, steps - config.ramp))
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """Runs a phase at a time over one model, and says how it goes.

    It computes in bfloat16 where the CPU multiplies that natively: one with AVX2 alone takes ten times as long for
    bfloat16 as for float32.

    Each thread takes its own rows of a batch and runs every operator alone, so threads wait for each other once a step
    and not once an operator. Two threads on a Xeon with AMX: 13,000 tokens/s either way while both cores are free, but
    2,400 instead of 1,200 while other programs keep both busy.
    """

    def __init__(self, model: LlamaForCausalLM, config: TrainConfig, threads: int) -> None:
        self._model = model
        self._config = config
        self._parameters = list(model.parameters())
        self._threads = threads
        self._dtype = torch.bfloat16 if native_bf16() else torch.float32
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        decayed = [p for p in self._parameters if p.dim() >= 2]
        plain = [p for p in self._parameters if p.dim() < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

    def run(
        self,
        phase: str,
        batches: Iterator[Batch],
        steps: int,
        *,
        anneal: bool,
        until: float = 0.0,
        keep: Callable[[], None] | None = None,
    ) -> dict[str, float]:
        """Train for ``steps`` steps, or until the smoothed loss falls below ``until``.

        ``keep`` is called now and then, so that an interrupted training leaves something.

        Returns:
            ``steps``, ``seconds``, ``cpu_seconds``, ``tokens``, and the smoothed ``loss`` at the end in nats a token.
        """
        started = reported = time.perf_counter()
        busy = time.process_time()
        tokens, since, smoothed = 0, 0, 0.0
        for step in range(steps):
            batch = next(batches)
            share = rate(step, steps, self._config) if anneal else min(1.0, (step + 1) / self._config.ramp)
            loss = self._step(batch, share * self._config.learning_rate)
            weight = max(0.05, 1 / (step + 1))
            smoothed += weight * (loss - smoothed)
            tokens, since = tokens + batch.ids.numel(), since + batch.ids.numel()
            done = step + 1 == steps or smoothed < until
            if done or (step + 1) % self._config.report_every == 0:
                now = time.perf_counter()
                left = (now - started) / (step + 1) * (steps - step - 1)
                print(
                    f"{phase} {step + 1}/{steps}  loss {smoothed:.4f}  {since / (now - reported):,.0f} tokens/s  "
                    f"{'done' if done else f'at most {left:.0f} s left'}",
                    flush=True,
                )
                reported, since = now, 0
            if done:
                break
            if keep and (step + 1) % self._config.save_every == 0:
                keep()
        return {
            "steps": step + 1,
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - busy, 1),
            "tokens": tokens,
            "loss": smoothed,
        }

    def _step(self, batch: Batch, learning_rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        threads = min(self._threads, len(batch.ids))
        shards = [Batch(batch.ids[i::threads], batch.labels[i::threads]) for i in range(threads)]
        answers = int((batch.labels != _IGNORED).sum())
        results = list(self._pool.map(self._gradients, shards, [answers] * threads))
        for parameter, *parts in zip(self._parameters, *(gradients for _, gradients in results), strict=True):
            parameter.grad = sum(parts[1:], start=parts[0])
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        return sum(loss for loss, _ in results)

    def _gradients(self, shard: Batch, answers: int) -> tuple[float, Sequence[Tensor]]:
        """One shard's part of the loss and of its gradients; ``answers`` is the number of labels in the whole batch."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            hidden = self._model.model(input_ids=shard.ids, use_cache=False).last_hidden_state
            wanted = shard.labels != _IGNORED
            logits = self._model.lm_head(hidden[wanted])
        loss = cross_entropy(logits.float(), shard.labels[wanted], reduction="sum") / answers
        return loss.item(), torch.autograd.grad(loss, self._parameters)


def train(folder: Path, config: TrainConfig, seed: int, threads: int, begun: Path | None = None) -> dict[str, Any]:
    """Train from nothing, or do the descents that ``begun``, a model's folder, hasn't had, and write ``folder``.

    Returns:
        What ``training.json`` there says.

    Raises:
        OSError: ``begun`` holds no model of `train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model, tokenizer, record = _begin(config, seed, threads) if begun is None else load(begun)
    record = {**record, "config": asdict(config)}
    for cycle in range(record["descents"], len(config.chat_steps)):
        phase = "chats" if cycle < config.tools_from else "tools"
        keep = partial(save, model, tokenizer, folder, config, record)
        done = chat_cycle(model, tokenizer, config, seed, threads, cycle, keep)
        before = record.get(phase, {})
        record[phase] = {name: done[name] + before.get(name, 0) for name in done}
        record[phase] |= {"loss": done["loss"], "machine": machine(threads)}
        record["descents"] = cycle + 1
        save(model, tokenizer, folder, config, record)
    return record


def _begin(config: TrainConfig, seed: int, threads: int) -> tuple[LlamaForCausalLM, Tokenizer, dict[str, Any]]:
    """A tokenizer, and a model that has learned to copy; no descent is done."""
    corpus = islice(conversations("train", seed), config.corpus_chats)
    tokenizer = train_tokenizer((m["content"] for chat in corpus for m in chat.messages), config.vocab_size)
    model = build_model(config, tokenizer)
    print(f"{model.num_parameters():,} parameters, {tokenizer.get_vocab_size()} tokens, {threads} threads", flush=True)
    generator = torch.Generator().manual_seed(seed)
    copies = copy_batches(config, tokenizer.get_vocab_size(), generator)
    copying = Trainer(model, config, threads).run(
        "copying", copies, config.copy_steps, anneal=False, until=config.copy_until
    )
    record: dict[str, Any] = {
        "seed": seed,
        "parameters": model.num_parameters(),
        "torch": torch.__version__,
        "copying": {**copying, "machine": machine(threads)},
        "descents": 0,
    }
    return model, tokenizer, record


def load(folder: Path) -> tuple[LlamaForCausalLM, Tokenizer, dict[str, Any]]:
    """What `save` has written, to go on with: its weights are in bfloat16, the model is in float32."""
    record = json.loads((folder / "training.json").read_text())
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, Tokenizer.from_file(str(folder / "tokenizer.json")), record


def chat_cycle(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    config: TrainConfig,
    seed: int,
    threads: int,
    cycle: int,
    keep: Callable[[], None],
) -> dict[str, float]:
    """One descent of the learning rate over fresh chats (warm restarts: Loshchilov and Hutter 2017).

    Each cycle begins from the weights as they are saved, in bfloat16, and with its share of the learning rate, of
    ``config.chat_peaks``.
    From ``config.tools_from`` on, some chats have tools or are about JSON, and most are as before: what isn't asked
    for any more is forgotten.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    chosen = seed + 1 + cycle
    source = conversations("train", chosen)
    if cycle >= config.tools_from:
        config = replace(config, chat_tokens=config.tool_tokens)
        source = all_chats("train", chosen, tools=config.tool_share, shapes=config.shape_share)
    chats = chat_batches(config, ChatEncoder(tokenizer), chosen, source)
    trainer = Trainer(model, replace(config, learning_rate=config.learning_rate * config.chat_peaks[cycle]), threads)
    return trainer.run(f"chats {cycle + 1}", chats, config.chat_steps[cycle], anneal=True, keep=keep)


def machine(threads: int) -> str:
    """The machine in words, for the card."""
    cpus = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpus.read_text()) if cpus.exists() else []
    return f"{threads} of {os.cpu_count()} cores of {models[0] if models else platform.machine()}"


def save(
    model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, config: TrainConfig, record: dict[str, Any]
) -> None:
    """Write weights (bfloat16), tokenizer, template and the training's record into ``folder``."""
    stored: Any = copy.deepcopy(model).bfloat16()
    stored.generation_config = GenerationConfig.from_dict(
        {
            "bos_token_id": model.config.bos_token_id,
            "eos_token_id": model.config.eos_token_id,
            "pad_token_id": model.config.pad_token_id,
            "do_sample": False,
        }
    )
    stored.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder, config.context)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.demo.train", description="Train the demo model from nothing, or go on."
    )
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="folder to write (default: the shipped model's)")
    parser.add_argument(
        "--continue",
        type=Path,
        metavar="FOLDER",
        dest="begun",
        help="go on with the model of this folder: do the descents that it hasn't had",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: one for each core")
    options = parser.parse_args()
    train(options.out, TrainConfig(), options.seed, options.threads, options.begun)


if __name__ == "__main__":
    main()
