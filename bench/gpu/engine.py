"""How fast does the engine answer on a GPU, and what does each of its ideas bring?

Scheduler, pipeline and runner are the worker's; only sockets are missing. All requests are there from the beginning.
"""

import gc
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, Final, NamedTuple

import torch
from torch._C._autograd import DeviceType

from bench.gpu.ceilings import Card
from bench.gpu.models import MODELS, random_decoder, weight_bytes
from bench.gpu.report import Case, Figure, Skipped
from engine.device_runner import DeviceLimits, DeviceRunner, step_bytes
from engine.job import Job
from engine.link import Sampling
from engine.memory import kv_budget
from engine.models import decoder
from engine.models.decoder import Decoder
from engine.pipeline import Outcome, Pipeline
from engine.runner import kv_bytes_per_block
from kernels.linear import Quantization
from kernels.rms_norm import reference as rms_norm
from kernels.rope_kv_write import reference as rope_kv_write
from kernels.silu_mul import reference as silu_mul
from scheduler.batch import Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.steptime import StepTime

BLOCK_SIZE: Final = 16
# The models that come first where time is short.
_FIRST: Final = ("qwen3-0.6b", "llama-3.1-8b")
# Output tokens a second asked for, of all requests together, and milliseconds a token of one alone.
_RATES: Final = {"qwen3-0.6b": 20_000.0, "llama-3.1-8b": 12_500.0}
_LATENCIES: Final = {"llama-3.1-8b": 4.2}
# Of the time, that the GPU is to compute, in percent.
_BUSY: Final = 95.0
# Steps that are watched for it, and from which on.
_WATCHED: Final = (50, 100)
# Which function of the decoder each fusion is, and what computes the same with a kernel of torch's for each operation.
FUSIONS: Final = {
    "addition + RMSNorm": ("rms_norm", rms_norm.rms_norm),
    "QK-norm + RoPE + KV write": ("rope_kv_write", rope_kv_write.rope_kv_write),
    "SiLU x up": ("silu_mul", silu_mul.silu_mul),
}


class Sizes(NamedTuple):
    """How large everything is: ``blocks`` of KV (None: all there's room for), ``prompt`` and ``output`` of one request.

    Where there are many, none has more than ``most`` tokens in or out; there are ``share`` of a workload's requests.
    """

    max_running: int = 256
    batch_tokens: int = 8192
    blocks: int | None = None
    prompt: int = 1000
    output: int = 128
    most: int = 2048
    share: float = 1.0


FULL: Final = Sizes()
QUICK: Final = Sizes(max_running=4, batch_tokens=64, blocks=64, prompt=18, output=8, most=18, share=0.03)


class Lengths(NamedTuple):
    """Tokens of one request."""

    prompt: int
    output: int


class Run(NamedTuple):
    """All requests of a workload once; ``steps`` in seconds."""

    tokens: int
    seconds: float
    steps: list[float]

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        return self.tokens / self.seconds


class Offline:
    """An engine without a worker around it."""

    def __init__(self, model: Decoder, sizes: Sizes, *, longest: int, **switches: Any) -> None:
        """For requests of up to ``longest`` tokens; ``switches`` are those of `DeviceLimits`."""
        config, device = model.config, model.device
        limits = DeviceLimits(
            max_running=sizes.max_running,
            max_batch_tokens=sizes.max_running + sizes.batch_tokens,
            max_model_len=longest,
            **switches,
        )
        blocks = sizes.blocks
        if blocks is None:
            blocks = kv_budget(
                device=device.type,
                bytes_per_block=kv_bytes_per_block(config, BLOCK_SIZE, model.dtype, device),
                block_size=BLOCK_SIZE,
                longest=longest,
                max_model_len=longest,
                max_running=sizes.max_running,
                asked=None,
                step_bytes=step_bytes(model, BLOCK_SIZE, limits),
            ).blocks
        self._vocabulary = config.vocab_size
        self._longest = longest
        self._runner = DeviceRunner(model, blocks, BLOCK_SIZE, limits)
        self._runner.warm_up()
        self._blocks = blocks
        self._limits = limits

    def run(self, lengths: Sequence[Lengths], seed: int, watch: "Busy | None" = None) -> Run:
        """Answer requests of these lengths, of random tokens, at temperature 0.6."""
        scheduling = SchedulerConfig(
            max_running=self._limits.max_running, max_batch_tokens=self._limits.max_batch_tokens
        )
        scheduler: Scheduler[Job] = Scheduler(scheduling, BlockPool(self._blocks, BLOCK_SIZE), StepTime())
        pipeline = Pipeline(scheduler, self._runner)
        draw = random.Random(seed)
        for uid, (prompt, output) in enumerate(lengths):
            scheduler.add(self._job(uid, draw.choices(range(self._vocabulary), k=prompt), output), time.monotonic())
        steps, tokens, begin = [], 0, time.perf_counter()
        try:
            while pipeline.busy:
                outcome: Outcome | None = pipeline.step()
                if outcome is not None:
                    steps.append(outcome.seconds)
                    tokens += len(outcome.drawn)
                if watch is not None:
                    watch.after_step(len(steps))
        finally:
            if watch is not None:
                watch.stop()
        seconds = time.perf_counter() - begin
        if tokens != sum(output for _, output in lengths):
            raise RuntimeError(f"{tokens} tokens were drawn, {sum(output for _, output in lengths)} were asked for")
        return Run(tokens, seconds, steps)

    def _job(self, uid: int, tokens: list[int], output: int) -> Job:
        sampling = Sampling(max_tokens=output, temperature=0.6, ignore_eos=True)
        return Job(
            sampling=sampling, seed=uid, uid=uid, tokens=tokens, max_tokens=output, max_len=self._longest,
            arrival=time.monotonic(), ttft=1.0, tpot=0.05,
        )  # fmt: skip


class Busy:
    """Which share of the time the GPU computes, in ``count`` steps from ``first`` on, by what the profiler has seen."""

    def __init__(self, first: int, count: int) -> None:
        self._first, self._last = first, first + count
        self._profile: Any = None
        self.share: float | None = None

    def after_step(self, done: int) -> None:
        """To be called after each step."""
        if done == self._first and self._profile is None:
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profile.start()
        elif done >= self._last:
            self.stop()

    def stop(self) -> None:
        """To be called at the end, which may come before that of the steps to be watched."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        # Launches and waits are listed too, as the host's.
        events = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
        if events:
            self.share = covered([(event.time_range.start, event.time_range.end) for event in events])


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The share of the time from the first beginning to the last end that lies in any of the spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - min((start for start, _ in spans), default=end)
    return total / whole if whole > 0 else 0.0


def nano(count: int = 256) -> list[Lengths]:
    """The "nano bench" of nano-vllm: 100 to 1,024 tokens in and out, evenly."""
    draw = random.Random(0)
    return [Lengths(draw.randint(100, 1024), draw.randint(100, 1024)) for _ in range(count)]


def chats(count: int = 1000) -> list[Lengths]:
    """Lengths like ShareGPT's: log-normal, with means of 220 tokens in and 200 out, none above 2,048."""
    draw = random.Random(0)

    def lengths(mean: int) -> list[int]:
        raw = [min(draw.lognormvariate(0, 1), 9.0) for _ in range(count)]
        return [max(4, min(2048, round(value * mean * count / sum(raw)))) for value in raw]

    return [Lengths(*pair) for pair in zip(lengths(220), lengths(200), strict=True)]


def cut(lengths: Sequence[Lengths], sizes: Sizes) -> list[Lengths]:
    """As many of the requests as ``sizes`` has, and no longer than that."""
    if sizes.share == 1:
        return list(lengths)
    kept = lengths[: max(2, round(sizes.share * len(lengths)))]
    return [Lengths(*(1 + count * (sizes.most - 1) // FULL.most for count in pair)) for pair in kept]


class Models:
    """The model that is measured, made when first needed; at most one at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._key: tuple[str, Quantization] | None = None
        self._model: Decoder | None = None

    def get(self, name: str, how: Quantization = "none") -> Decoder:
        if self._model is None or self._key != (name, how):
            self.drop()
            self._model, self._key = random_decoder(MODELS[name], self._device, how), (name, how)
        return self._model

    def drop(self) -> None:
        """Give the memory back."""
        self._model = None
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def cases(card: Card, names: Sequence[str], *, first: bool) -> Iterator[Case]:
    """The models' figures, either the ``first`` ones or the rest: how fast they are, then what each idea brings."""
    sizes = QUICK if card.quick else FULL
    models = Models(card.device)
    early = [name for name in names if name in _FIRST] or names
    for name in early if first else [name for name in names if name not in early]:
        yield from _speed(card, models, name, sizes)
    if not first:
        for name in names:
            if name == "llama-3.1-8b":
                if card.device.type == "cuda":
                    run = partial(_single, card, models, name, sizes, "fp8")
                    yield Case("engine", f"{name}, one request, fp8", 40, run)
            else:
                yield from _switches(models, name, sizes)
    models.drop()


def _speed(card: Card, models: Models, name: str, sizes: Sizes) -> Iterator[Case]:
    yield Case("engine", f"{name}, one request", 40, partial(_single, card, models, name, sizes))
    title, lengths = workload(name, sizes)
    yield Case("engine", f"{name}, {title}", 60, partial(_throughput, models, name, title, lengths, sizes))
    if card.device.type == "cuda":
        yield Case("engine", f"{name}, {title}, GPU busy", 40, partial(_busy, models, name, title, lengths, sizes))


def workload(name: str, sizes: Sizes) -> tuple[str, list[Lengths]]:
    """What a model is given to do, by what others report of it."""
    return ("1,000 chats", cut(chats(), sizes)) if name == "llama-3.1-8b" else ("nano bench", cut(nano(), sizes))


def _single(card: Card, models: Models, name: str, sizes: Sizes, how: Quantization = "none") -> Iterator[Figure]:
    """One request alone: milliseconds a token at a context of 1,000, beside one read of the weights and of its KV."""
    model = models.get(name, how)
    engine = Offline(model, sizes._replace(max_running=4), longest=min(2048, model.config.max_position_embeddings))
    lengths = [Lengths(sizes.prompt, sizes.output)]
    seconds = [median(engine.run(lengths, seed).steps[2:]) for seed in range(2)]
    weights = weight_bytes(model.config) // (1 if how == "none" else 2)
    floor = card.floor(weights + kv_bytes_per_block(model.config, 1, model.dtype, model.device) * sizes.prompt)
    yield Figure(
        f"{name}, one request at {sizes.prompt:,}{'' if how == 'none' else f', {how}'}",
        "ms/token",
        [second * 1e3 for second in seconds],
        None if floor is None else floor * 1e3,
        _LATENCIES.get(name) if how == "none" else None,
        lower=True,
    )


def _throughput(
    models: Models, name: str, title: str, lengths: Sequence[Lengths], sizes: Sizes, **switches: Any
) -> Iterator[Figure]:
    engine = Offline(models.get(name), sizes, longest=4096, **switches)
    rates = [engine.run(lengths, seed).rate for seed in range(2)]
    yield Figure(f"{name}, {title}", "tokens/s", rates, None, None if switches else _RATES.get(name))


def _busy(models: Models, name: str, title: str, lengths: Sequence[Lengths], sizes: Sizes) -> Iterator[Figure]:
    """A run of its own: the profiler slows it down."""
    watch = Busy(*_WATCHED)
    Offline(models.get(name), sizes, longest=4096).run(lengths, 2, watch)
    if watch.share is None:
        raise Skipped("the profiler saw no work of the GPU")
    yield Figure(f"{name}, {title}, GPU busy", "%", [watch.share * 100], 100.0, _BUSY)


def _switches(models: Models, name: str, sizes: Sizes) -> Iterator[Case]:
    """The same workload with one idea switched off at a time."""
    title, lengths = workload(name, sizes)

    def case(what: str, fusion: str | None = None, **switches: Any) -> Case:
        def run() -> Iterator[Figure]:
            with _replaced(*FUSIONS[fusion]) if fusion else nullcontext():
                for figure in _throughput(models, name, title, lengths, sizes, **switches):
                    yield replace(figure, name=full, target=None)

        full = f"{name}, {title}, {what}"
        return Case("engine", full, 45, run)

    yield case("all on")
    yield case("planned in turn", ahead=False)
    yield case("no graphs", graphs=False)
    for fusion in FUSIONS:
        yield case(f"{fusion} unfused", fusion)


@contextmanager
def _replaced(function: str, other: Any) -> Iterator[None]:
    """Let the decoder call ``other`` in place of one of its operations."""
    original = getattr(decoder, function)
    setattr(decoder, function, other)
    try:
        yield
    finally:
        setattr(decoder, function, original)
