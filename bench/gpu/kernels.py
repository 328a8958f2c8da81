"""How near do our kernels come to what the card can do, at the shapes that models and their servers have?

Attention is in `bench.gpu.attention`. The sizes of a figure are in its name; what must be read or written counts once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch

from bench.gpu.ceilings import Card
from bench.gpu.check import moved
from bench.gpu.report import Case, Figure, Result
from bench.gpu.shapes import BF16, BLOCK, FULL, QUICK, Dense, products
from bench.gpu.timing import Call, Timing
from kernels.embedding import embedding
from kernels.kv_cache import allocate
from kernels.linear import Quantization, linear, pack
from kernels.lora import Adapters, group, lora
from kernels.rms_norm import rms_norm
from kernels.rope_kv_write import QkNorm, rope_kv_write
from kernels.sample import SamplingBatch, sample
from kernels.silu_mul import silu_mul
from kernels.step_inputs import prepare
from kernels.step_inputs import reference as step_inputs

# A sampler is to take no longer than so many reads of the logits.
_READS: Final = 1.3
# The likeliest tokens for which the engine's graphs leave room.
_TOP: Final = 20


def cases(card: Card) -> Iterator[Case]:
    """All but attention, the most important first."""
    sizes = QUICK if card.quick else FULL
    model = sizes.models[1]
    for rows in sizes.sampled:
        yield Case("kernels", f"sampling, batch {rows}", 8, partial(_sampling, card, rows, sizes.vocabulary))
    for quantization in ("none", "fp8"):
        for name, outputs, inputs in products(model):
            title = f"linear, {name} {outputs} x {inputs}, {'bf16' if quantization == 'none' else 'fp8'}"
            run = partial(_linear, card, title, outputs, inputs, sizes.products, quantization)
            yield Case("kernels", title, 8, run)
    for dense in sizes.models:
        for function in (_rms_norm, _silu_mul, _rope, _embedding):
            for tokens in sizes.tokens:
                title = f"{function.__name__.strip('_')}, {dense.heads.name}, {tokens} tokens"
                yield Case("kernels", title, 3, partial(_moved, card, title, function, dense, tokens))
    for tokens in sizes.tokens:
        title = f"step_inputs, {tokens} tokens"
        yield Case("kernels", title, 3, partial(_step_inputs, card, title, tokens))
    yield Case("kernels", "LoRA", 12, partial(_lora, card, model, 4 if card.quick else 64))


def sampling_batch(rows: int, vocabulary: int, device: torch.device, **changes: Any) -> SamplingBatch:
    """Rows that sample at temperature 0.8, as the engine's graphs have them: nothing edited, room for top tokens."""

    def full(value: float, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.full(shape or (rows,), value, dtype=dtype, device=device)

    int32, float32 = torch.int32, torch.float32
    plain = SamplingBatch(
        temperature=full(0.8, float32),
        top_k=full(0, int32),
        top_p=full(1.0, float32),
        min_p=full(0.0, float32),
        seed=torch.arange(rows, device=device) * 7919,
        position=full(1000, torch.int64),
        edited=full(0, int32, 0),
        edit_starts=full(0, int32, rows + 1),
        edit_scale=full(0, float32, 0),
        edit_offset=full(0, float32, 0),
        mask=full(0, int32, 0, -(-vocabulary // 32)),
        mask_row=full(-1, int32),
        top=full(0, int32),
        width=min(_TOP, vocabulary),
    )
    return replace(plain, **changes)


def _sampling(card: Card, rows: int, vocabulary: int) -> Iterator[Figure]:
    """Beside one read of the logits, as torch's ``amax`` of each row does it."""
    device = card.device
    size = 2 * rows * vocabulary
    every = [4 * torch.randn(rows, vocabulary, dtype=BF16, device=device) for _ in range(card.sets(size))]
    title = f"sampling {vocabulary} logits, batch {rows}"
    read = card.time_calls([partial(logits.amax, dim=-1) for logits in every])
    yield _time(f"{title}: one read (amax)", read, _microseconds(card.floor(size)))
    bits = torch.randint(-(2**31), 2**31, (rows, -(-vocabulary // 32)), dtype=torch.int64, device=device).int()
    variants: dict[str, dict[str, Any]] = {
        "temperature": {},
        "greedy": {"temperature": torch.zeros(rows, device=device)},
        "top-p 0.9 + top-k 50": {
            "top_p": torch.full((rows,), 0.9, device=device),
            "top_k": torch.full((rows,), 50, dtype=torch.int32, device=device),
        },
        "top-p 0.9": {"top_p": torch.full((rows,), 0.9, device=device)},
        "masks": {"mask": bits, "mask_row": torch.arange(rows, dtype=torch.int32, device=device)},
    }
    for name, changes in variants.items():
        batch = sampling_batch(rows, vocabulary, device, **changes)
        timing = card.time_calls([partial(sample, logits, batch) for logits in every])
        masks = changes.get("mask")
        floor = card.floor(size + (0 if masks is None else masks.nbytes))
        figure = _time(f"{title}: {name}", timing, _microseconds(floor))
        yield replace(figure, target=_READS * read.seconds * 1e6) if name == "temperature" else figure


def _moved(
    card: Card,
    title: str,
    function: Callable[[Card, Dense, int], tuple[float, Callable[[int], Call]]],
    dense: Dense,
    tokens: int,
) -> Iterable[Result]:
    """A figure of something that only moves bytes."""
    size, make = function(card, dense, tokens)
    yield _time(title, card.time(make, int(size)), _microseconds(card.floor(size)))


def _rms_norm(card: Card, dense: Dense, tokens: int) -> tuple[float, Callable[[int], Call]]:
    """With a residual: two are read and two written."""
    new = _maker(card)
    weight = new(dense.hidden)

    def make(index: int) -> Call:
        return partial(rms_norm, new(tokens, dense.hidden), weight, 1e-6, new(tokens, dense.hidden))

    return 8 * tokens * dense.hidden, make


def _silu_mul(card: Card, dense: Dense, tokens: int) -> tuple[float, Callable[[int], Call]]:
    new = _maker(card)
    return 6 * tokens * dense.inner, lambda index: partial(silu_mul, new(tokens, 2 * dense.inner))


def _rope(card: Card, dense: Dense, tokens: int) -> tuple[float, Callable[[int], Call]]:
    """All heads are read, and written to where they were or to the cache."""
    new, heads, positions = _maker(card), dense.heads, 8192
    width = (heads.query + 2 * heads.kv) * heads.dim
    norm = QkNorm(new(heads.dim), new(heads.dim), 1e-6) if dense.qk_norm else None
    table = torch.rand(positions, heads.dim, device=card.device)
    blocks = -(-tokens // BLOCK) * card.sets(4 * tokens * width)
    cache = allocate(blocks, heads.kv, heads.dim, BLOCK, BF16, card.device)
    order = torch.randperm(blocks * BLOCK, device=card.device)

    def make(index: int) -> Call:
        at = torch.randint(positions, (tokens,), dtype=torch.int32, device=card.device)
        slots = order[index * tokens : (index + 1) * tokens]
        return partial(rope_kv_write, new(tokens, width), at, slots, table, cache, norm)

    return 4 * tokens * width, make


def _embedding(card: Card, dense: Dense, tokens: int) -> tuple[float, Callable[[int], Call]]:
    table = _maker(card)(dense.vocabulary, dense.hidden)

    def make(index: int) -> Call:
        return partial(embedding, torch.randint(len(table), (tokens,), dtype=torch.int32, device=card.device), table)

    return 4 * tokens * dense.hidden, make


def _step_inputs(card: Card, title: str, tokens: int) -> Iterable[Figure]:
    """Up to 256 sequences at a context of 1,000: tables are read and written, and tokens' 20 bytes."""
    sequences = min(tokens, 256)
    count = tokens // sequences
    made = step_inputs.inputs([(1000, count)] * sequences, BLOCK, 0)
    table = 4 * -(-(1000 + count) // BLOCK)
    size = sequences * (2 * table + 100) + 20 * sequences * count
    timing = card.time(lambda index: _prepare_call(card, made), size)
    yield _time(title, timing, _microseconds(card.floor(size)))


def _prepare_call(card: Card, made: step_inputs.Inputs) -> Call:
    own = moved(made, card.device)
    return partial(prepare, own.state, own.request, own.buffers)


def _linear(
    card: Card, title: str, outputs: int, inputs: int, rows: Sequence[int], quantization: Quantization
) -> Iterator[Figure]:
    """Beside what reading the weight takes, or the operations (fp8 has twice as many a second)."""
    new = _maker(card)
    each = outputs * inputs * (2 if quantization == "none" else 1)
    weights = [pack(new(outputs, inputs).mul_(inputs**-0.5), quantization) for _ in range(card.sets(each))]
    for count in rows:
        size = each + 2 * count * (inputs + outputs)
        floor = card.floor(size, 2 * count * outputs * inputs, rate=1.0 if quantization == "none" else 2.0)
        timing = card.time_calls([partial(linear, new(count, inputs), weight) for weight in weights])
        yield _time(f"{title}, {count} rows", timing, _microseconds(floor))


def _lora(card: Card, model: Dense, rows: int, rank: int = 16, adapters: int = 8) -> Iterator[Figure]:
    """What adapters add to a layer's products, when each row has one of eight."""
    new = _maker(card)
    adapter_of = torch.arange(rows, dtype=torch.int32, device=card.device) % adapters
    batch = group(adapter_of, adapters)
    added = [0.0, 0.0]
    plain = [0.0, 0.0]
    for name, outputs, inputs in products(model):
        size = 2 * (adapters * rank * (inputs + outputs) + rows * (inputs + 2 * outputs))

        def make(index: int, outputs: int = outputs, inputs: int = inputs) -> Call:
            stacked = Adapters(
                a=new(adapters, rank, inputs).mul_(inputs**-0.5),
                b=new(adapters, outputs, rank).mul_(rank**-0.5),
                scale=torch.ones(adapters, device=card.device),
            )
            return partial(lora, new(rows, inputs), new(rows, outputs), stacked, batch)

        timing = card.time(make, size)
        title = f"LoRA, rank {rank}, {adapters} adapters, {name} {outputs} x {inputs}, {rows} rows"
        yield _time(title, timing, _microseconds(card.floor(size)))
        added = [sum(pair) for pair in zip(added, timing.medians, strict=True)]
        weights = [pack(new(outputs, inputs)) for _ in range(card.sets(2 * outputs * inputs))]
        timing = card.time_calls([partial(linear, new(rows, inputs), weight) for weight in weights])
        plain = [sum(pair) for pair in zip(plain, timing.medians, strict=True)]
        del weights
    overhead = [100 * one / other for one, other in zip(added, plain, strict=True)]
    yield Figure(f"LoRA, rank {rank}, {adapters} adapters, {rows} rows: beside the products", "%", overhead, lower=True)


def _maker(card: Card) -> Callable[..., torch.Tensor]:
    """Makes random tensors of a shape, in bfloat16."""

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=BF16, device=card.device)

    return new


def _time(title: str, timing: Timing, limit: float | None) -> Figure:
    return Figure(title, "µs", [one * 1e6 for one in timing.medians], limit, lower=True, jitter=timing.jitter)


def _microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6
