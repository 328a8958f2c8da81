"""Do the kernels compute on this card what their references define?

What is compared was never compared on a GPU by the tests of a machine that has none: Triton's interpreter stands in for
it there. Inputs are made on the CPU and moved; the reference computes on the CPU. An error counts as in the tests,
relative to one more than the magnitude that is expected.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from bench.gpu.ceilings import Card
from bench.gpu.report import Case, Check
from engine.device_queue import queue_for
from kernels.embedding import embedding
from kernels.embedding import reference as embedding_reference
from kernels.linear import linear, pack
from kernels.linear import reference as linear_reference
from kernels.lora import group, lora
from kernels.lora import reference as lora_reference
from kernels.paged_attention import paged_attention, plan
from kernels.paged_attention import reference as attention_reference
from kernels.rms_norm import reference as norm_reference
from kernels.rms_norm import rms_norm
from kernels.rope_kv_write import reference as rope_reference
from kernels.rope_kv_write import rope_kv_write
from kernels.sample import SamplingBatch, sample
from kernels.sample import reference as sample_reference
from kernels.score import reference as score_reference
from kernels.score import score
from kernels.silu_mul import reference as silu_reference
from kernels.silu_mul import silu_mul
from kernels.step_inputs import prepare, update
from kernels.step_inputs import reference as step_reference

BF16: Final = torch.bfloat16
FP8: Final = torch.float8_e4m3fn
_CPU: Final = torch.device("cpu")
# Query heads, KV heads, head_dim: groups of two, four and seven.
_HEADS: Final = ((16, 8, 128), (32, 8, 128), (14, 2, 64))
# Of rows that may draw another token than the reference: float32 rounds where float64 doesn't.
_OTHER_TOKENS: Final = 0.005
# Of a cache in float8: where float32 differs by a bit, float8 may differ by a step, but not often.
_FP8_STEP: Final = 1 / 8
_FP8_OTHERS: Final = 0.01
# Products of a float8 cache take float16, and sums are as in bfloat16.
_ATTENTION_TOLERANCE: Final = attention_reference.TOLERANCE[BF16]
# So sharp that a few tokens make the result, however long a context is: a mean of thousands would hide what is wrong.
_SCALE: Final = 0.3


def cases(card: Card) -> Iterator[Case]:
    """One for each operation, then graphs, then whole models."""
    functions: tuple[Callable[[Card], Iterator[Check]], ...] = (
        _rms_norm, _silu_mul, _embedding, _rope, _attention, _step_inputs, _sampling, _scoring, _linear, _lora, _graphs,
    )  # fmt: skip
    for function in functions:
        title = f"check of {function.__name__.strip('_').replace('_', ' ')}"
        yield Case("checks", title, 10, partial(function, card))
    for family in ("llama",) if card.quick else ("llama", "qwen3"):
        title = f"check of a small {family} beside transformers"
        yield Case("checks", title, 30, partial(_beside_transformers, card, family))


def moved(thing: Any, to: torch.device) -> Any:
    """A copy of tensors in dataclasses, tuples and lists on another device; what else is there stays as it is."""
    if isinstance(thing, torch.Tensor):
        # A copy keeps the order of dimensions in memory, which a cache's layout is.
        return thing.to(to, copy=True)
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(moved(one, to) for one in thing))
    if isinstance(thing, tuple | list):
        return type(thing)(moved(one, to) for one in thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{field.name: moved(getattr(thing, field.name), to) for field in fields(thing)})
    return thing


def worst(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error relative to one more than the expected magnitude; inf if only one of the two is a number."""
    if actual.shape != expected.shape:
        return float("inf")
    if not actual.numel():
        return 0.0
    actual = actual.detach().cpu()
    one, other = actual.double(), expected.double()
    same = (actual == expected) | (one.isnan() & other.isnan())
    error = ((one - other).abs() / (1 + other.abs())).masked_fill(same, 0.0)
    return float(error.nan_to_num(float("inf"), float("inf")).max())


def differing(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The share of elements that aren't the same."""
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual.cpu() != expected).double().mean()) if actual.numel() else 0.0


def _rms_norm(card: Card) -> Iterator[Check]:
    for rows, width in ((1, 1024), (37, 4096), (5, 896)):
        x, weight, residual = norm_reference.inputs(rows, width, BF16, rows)
        sums = residual.to(card.device, copy=True)
        there = x.to(card.device), weight.to(card.device)
        plain, added = rms_norm(*there, 1e-6), rms_norm(*there, 1e-6, sums)
        name, tolerance = f"rms_norm {rows} x {width}", norm_reference.TOLERANCE[BF16]
        yield Check(name, worst(plain, norm_reference.rms_norm(x, weight, 1e-6)), tolerance)
        expected = norm_reference.rms_norm(x, weight, 1e-6, residual)
        yield Check(f"{name}, residual", max(worst(added, expected), worst(sums, residual)), tolerance)


def _silu_mul(card: Card) -> Iterator[Check]:
    for rows, width in ((1, 3072), (37, 14_336), (3, 4864)):
        x = silu_reference.inputs(rows, width, BF16, rows)
        error = worst(silu_mul(x.to(card.device)), silu_reference.silu_mul(x))
        yield Check(f"silu_mul {rows} x {width}", error, silu_reference.TOLERANCE[BF16])


def _embedding(card: Card) -> Iterator[Check]:
    for rows, width in ((1, 896), (300, 4096)):
        ids, table = embedding_reference.inputs(rows, 500, width, BF16, rows)
        error = worst(embedding(ids.to(card.device), table.to(card.device)), embedding_reference.embedding(ids, table))
        yield Check(f"embedding {rows} x {width}", error, 0.0)


def _rope(card: Card) -> Iterator[Check]:
    for heads, kv_heads, dim in _HEADS:
        for cache_dtype in _cache_dtypes(card):
            here = rope_reference.inputs(
                33, heads, kv_heads, dim, BF16, heads, norm=heads == 16, cache_dtype=cache_dtype
            )
            there = moved(here, card.device)
            for one, function in ((there, rope_kv_write), (here, rope_reference.rope_kv_write)):
                function(one.qkv, one.positions, one.slots, one.table, one.cache, one.norm)
            name = f"rope_kv_write {heads}/{kv_heads} x {dim}{_suffix(cache_dtype)}"
            query, tolerance = heads * dim, rope_reference.TOLERANCE[BF16]
            yield Check(f"{name}, queries", worst(there.qkv[:, :query], here.qkv[:, :query]), tolerance)
            yield Check(f"{name}, values", worst(there.cache.value.float(), here.cache.value.float()), 0.0)
            keys = there.cache.key.float(), here.cache.key.float()
            narrow = cache_dtype == FP8
            yield Check(f"{name}, keys", worst(*keys), _FP8_STEP if narrow else tolerance)
            if narrow:
                yield Check(f"{name}, share of keys that differ", differing(*keys), _FP8_OTHERS)


def _cache_dtypes(card: Card) -> tuple[torch.dtype | None, ...]:
    """A CPU has its own layout, and no float8."""
    return (None,) if card.device.type == "cpu" else (BF16, FP8)


def _suffix(cache_dtype: torch.dtype | None) -> str:
    return ", fp8 cache" if cache_dtype == FP8 else ""


def _attention(card: Card) -> Iterator[Check]:
    long = 60 if card.quick else 3000
    batches: dict[str, list[tuple[int, int]]] = {
        "decodes": [(1, 1), (1, 17), (1, long), (1, 64), (1, 129), (1, long // 3)],
        "a mixed batch": [(1, long), (37, 37), (1, 5), (0, 0), (200, long // 2 + 200), (1, 65)],
        "one prompt": [(130, 130)],
        "the rest of a prompt": [(70, long // 2 + 70)],
    }
    for heads, kv_heads, dim in _HEADS[:1] if card.quick else _HEADS:
        for cache_dtype in _cache_dtypes(card):
            for what, lengths in batches.items():
                here = attention_reference.inputs(lengths, heads, kv_heads, dim, 16, BF16, heads, cache_dtype)
                batch = replace(here.batch, decodes_only=what == "decodes")
                there = moved(replace(here, batch=batch), card.device)
                for window in (0, 50):
                    options: dict[str, Any] = {"window": window, "scale": _SCALE}
                    planned = plan(there.batch, (window,))
                    actual = paged_attention(there.query, there.cache, planned, **options)
                    expected = attention_reference.paged_attention(here.query, here.cache, batch, **options)
                    name = f"paged_attention {heads}/{kv_heads} x {dim}{_suffix(cache_dtype)}, {what}"
                    error = worst(actual, expected)
                    yield Check(f"{name}{', window 50' if window else ''}", error, _ATTENTION_TOLERANCE)


def _step_inputs(card: Card) -> Iterator[Check]:
    for what, slices in {
        "decodes": [(start, 1) for start in range(0, 2000, 61)],
        "mixed": [(0, 300), (17, 1), (1000, 33), (5, 0), (2000, 1)],
    }.items():
        here = step_reference.inputs(slices, 16, 3)
        there = moved(here, card.device)
        prepare(there.state, there.request, there.buffers)
        step_reference.prepare(here.state, here.request, here.buffers)
        errors = [
            worst(getattr(there.buffers, name), getattr(here.buffers, name))
            for name in here.buffers.__slots__
            if name != "block_tables"
        ]
        for row, (start, count) in enumerate(slices):  # what is past a context may be anything
            used = -(-(start + count) // 16)
            errors.append(worst(there.buffers.block_tables[row, :used], here.buffers.block_tables[row, :used]))
        yield Check(f"step_inputs.prepare, {what}", max(errors), 0.0)
        places = torch.randperm(here.state.rows.numel())[:500].int()
        values = torch.arange(len(places), dtype=torch.int32)
        update(there.state, places.to(card.device), values.to(card.device))
        step_reference.update(here.state, places, values)
        yield Check(f"step_inputs.update, {what}", worst(there.state.rows, here.state.rows), 0.0)


def _sampling(card: Card) -> Iterator[Check]:
    shapes = ((9, 300),) if card.quick else ((200, 40_000), (24, 151_936))
    for rows, vocabulary in shapes:
        logits, batch = sample_reference.inputs(rows, vocabulary, BF16, rows)
        yield from _samples(card, f"sample {rows} x {vocabulary}, of every kind", logits, batch)
        yield from _samples(card, f"sample {rows} x {vocabulary}, plain", logits, unedited(batch))


def unedited(batch: SamplingBatch) -> SamplingBatch:
    """The batch without edits and masks, as the engine's graphs have it."""
    return replace(
        batch,
        edited=batch.edited[:0],
        edit_starts=torch.zeros_like(batch.edit_starts),
        edit_scale=batch.edit_scale[:0],
        edit_offset=batch.edit_offset[:0],
        mask=batch.mask[:0],
        mask_row=torch.full_like(batch.mask_row, -1),
    )


def _samples(card: Card, name: str, logits: torch.Tensor, batch: SamplingBatch) -> Iterator[Check]:
    """Tokens one by one; what is said of them where they are the same."""
    actual = moved(sample(logits.to(card.device), moved(batch, card.device)), _CPU)
    expected = sample_reference.sample(logits, batch)
    rows = len(logits)
    other = max(_OTHER_TOKENS, 1 / rows)
    yield Check(f"{name}: share of other tokens", differing(actual.tokens, expected.tokens), other)
    same = actual.tokens == expected.tokens
    tolerance = sample_reference.LOGPROB_TOLERANCE
    yield Check(f"{name}: log-probabilities", worst(actual.logprobs[same], expected.logprobs[same]), tolerance)
    yield Check(f"{name}: entropies", worst(actual.entropies, expected.entropies), tolerance)
    yield Check(f"{name}: low margins", differing(actual.low_margins, expected.low_margins), 1 / rows)
    yield Check(f"{name}: likeliest tokens", differing(actual.top_tokens, expected.top_tokens), 0.0)
    yield Check(f"{name}: their log-probabilities", worst(actual.top_logprobs, expected.top_logprobs), tolerance)


def _scoring(card: Card) -> Iterator[Check]:
    rows, vocabulary = (3, 300) if card.quick else (33, 151_936)
    logits, targets = score_reference.inputs(rows, vocabulary, BF16, 1)
    actual = score(logits.to(card.device), targets.to(card.device), 5)
    expected = score_reference.score(logits, targets, 5)
    name, tolerance = f"score {rows} x {vocabulary}", score_reference.LOGPROB_TOLERANCE
    yield Check(f"{name}: log-probabilities", worst(actual.logprobs, expected.logprobs), tolerance)
    yield Check(f"{name}: ranks", differing(actual.ranks, expected.ranks), 0.0)
    yield Check(f"{name}: likeliest tokens", differing(actual.top_tokens, expected.top_tokens), 0.0)
    yield Check(f"{name}: their log-probabilities", worst(actual.top_logprobs, expected.top_logprobs), tolerance)


def _linear(card: Card) -> Iterator[Check]:
    shapes: Sequence[tuple[int, int, int]] = ((1, 1024, 4096), (16, 4096, 1024), (33, 3072, 1024), (64, 896, 1152))
    shapes = ((3, 64, 48),) if card.quick else (*shapes, (300, 1024, 4096), (5, 100, 75))
    for rows, width, outputs in shapes:
        x, weight, bias = linear_reference.inputs(rows, width, outputs, BF16, rows)
        there = moved((x, weight, bias), card.device)
        name = f"linear {rows} x {width} to {outputs}"
        error = worst(linear(there[0], pack(there[1]), there[2]), linear_reference.linear(x, weight, bias))
        yield Check(f"{name}, bf16", error, linear_reference.TOLERANCE[BF16])
        rounded = linear_reference.quantise_fp8(weight)
        actual = linear(there[0], pack(there[1], "fp8"), there[2]).cpu().double()
        expected = linear_reference.linear_fp8(x, rounded, bias).double()
        # Relative to the largest of a row where that counts more, as the reference says.
        scale = expected.abs().maximum(x.double().abs().amax(1, keepdim=True)).clamp(min=1)
        yield Check(f"{name}, fp8", worst((actual - expected) / scale, 0 * scale), linear_reference.FP8_TOLERANCE[BF16])


def _lora(card: Card) -> Iterator[Check]:
    shapes = (
        ((5, 64, 48, 8, 3),)
        if card.quick
        else ((1, 4096, 4096, 16, 1), (64, 4096, 1024, 16, 8), (300, 1024, 3072, 64, 4))
    )
    for rows, width, outputs, rank, adapters in shapes:
        here = lora_reference.inputs(rows, width, outputs, rank, adapters, BF16, rows)
        there = moved(here, card.device)
        lora(there.x, there.y, there.adapters, group(there.adapter_of, adapters))
        lora_reference.lora(here.x, here.y, here.adapters, here.adapter_of)
        name = f"lora {rows} x {width} to {outputs}, rank {rank}, {adapters} adapters"
        yield Check(name, worst(there.y, here.y), lora_reference.TOLERANCE[BF16])


def _graphs(card: Card) -> Iterator[Check]:
    """What was captured on some inputs, replayed on others that were copied over them."""
    queue = queue_for(card.device)

    def check(
        name: str, tolerance: float, inputs: Callable[[int], Any], work: Callable[[Any], torch.Tensor],
        reference: Callable[[Any], torch.Tensor], measure: Callable[[torch.Tensor, torch.Tensor], float] = worst,
    ) -> Iterator[Check]:  # fmt: skip
        there = moved(inputs(0), card.device)
        replay = queue.capture(lambda: work(there))
        errors = []
        for seed in (1, 2):
            here = inputs(seed)
            _overwrite(there, here)
            errors.append(measure(replay(), reference(here)))
        yield Check(f"{name}, replayed", max(errors), tolerance)

    lengths = [(1, 300), (1, 17), (1, 40 if card.quick else 1000), (1, 64)]
    cache_dtype = _cache_dtypes(card)[0]

    def decodes(seed: int) -> attention_reference.Inputs:
        turned = [*lengths[seed:], *lengths[:seed]]
        made = attention_reference.inputs(turned, 16, 8, 128, 16, BF16, seed, cache_dtype)
        return replace(made, batch=replace(made.batch, decodes_only=True))

    def attend(one: Any) -> torch.Tensor:
        return paged_attention(one.query, one.cache, plan(one.batch, (0,)), window=0, scale=_SCALE)

    def attended(one: Any) -> torch.Tensor:
        return attention_reference.paged_attention(one.query, one.cache, one.batch, window=0, scale=_SCALE)

    yield from check("paged_attention", _ATTENTION_TOLERANCE, decodes, attend, attended)

    def logits(seed: int) -> tuple[torch.Tensor, SamplingBatch]:
        made, batch = sample_reference.inputs(64, 5000, BF16, seed)
        return made, replace(unedited(batch), top=torch.zeros_like(batch.top), width=0)

    yield from check(
        "sample",
        1 / 64,
        logits,
        lambda one: sample(*one).tokens,
        lambda one: sample_reference.sample(*one).tokens,
        differing,
    )
    x, weight, _ = linear_reference.inputs(16, 512, 256, BF16, 0)
    packed = pack(weight.to(card.device), "fp8")
    rounded = linear_reference.quantise_fp8(weight)
    yield from check(
        "linear, fp8",
        linear_reference.FP8_TOLERANCE[BF16],
        lambda seed: x * (1 + seed),
        lambda one: linear(one, packed),
        lambda one: linear_reference.linear_fp8(one, rounded),
    )


def _overwrite(there: Any, here: Any) -> None:
    """Put the tensors of one value into those of another that is made alike."""
    if isinstance(there, torch.Tensor):
        there.copy_(here)
    elif isinstance(there, tuple | list):
        for one, other in zip(there, here, strict=True):
            _overwrite(one, other)
    elif is_dataclass(there):
        for field in fields(there):
            _overwrite(getattr(there, field.name), getattr(here, field.name))


def _beside_transformers(card: Card, family: str) -> Iterator[Check]:
    """Greedy tokens in float32 of three requests at once, with graphs, and transformers' own on the same device."""
    from tests.engine.driving import job, run
    from tests.engine.families import make_runner, prompt, save

    count, prompts = (6 if card.quick else 24), [prompt(seed, 5 + 9 * seed) for seed in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        pair = save(family, Path(folder))
        runner = make_runner(Path(folder), "device" if card.device.type == "cpu" else "cuda", max_running=4)
        runner.warm_up()
        ours = run(runner, [job(uid, tokens, count) for uid, tokens in enumerate(prompts)]).tokens
        judge = pair.judge.to(card.device)
        different = 0
        for uid, tokens in enumerate(prompts):
            ids = judge.generate(
                torch.tensor([tokens], device=card.device), max_new_tokens=count, min_new_tokens=count, do_sample=False
            )
            expected = ids[0, len(tokens) :].tolist()
            different += sum(one != other for one, other in zip(ours[uid], expected, strict=True))
    share = different / (count * len(prompts))
    yield Check(f"greedy tokens of a small {family} beside transformers': share that differ", share, 0.0)
