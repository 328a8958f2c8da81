"""What the GPU benchmark's figures are made of: times, ceilings, workloads, and comparisons that can fail."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import mean
from typing import Any, ClassVar

import pytest
import torch
from torch._C._autograd import DeviceType

from bench.gpu import attention, check, engine, shapes, timing
from bench.gpu.ceilings import COPY, PRODUCT, Card, rate
from bench.gpu.engine import Busy, Lengths, chats, covered, cut, nano
from bench.gpu.models import MODELS, random_decoder, weight_bytes
from bench.gpu.report import Check, Figure, Skipped
from bench.gpu.timing import Timing, sets_needed, timed
from engine.models import decoder
from kernels.kv_cache import token_major
from kernels.paged_attention import paged_attention
from kernels.rms_norm import rms_norm
from kernels.sample import Samples, SamplingBatch, sample

CPU = torch.device("cpu")
CARD = Card(CPU, {COPY: Figure(COPY, "GB/s", [4.0]), PRODUCT: Figure(PRODUCT, "TFLOP/s", [0.8])}, quick=True)


def test_calls_are_taken_in_turn() -> None:
    calls: list[int] = []
    found = timed([lambda: calls.append(1), lambda: calls.append(2)], CPU, measurements=3)
    assert calls == [1, 2] + 2 * [1, 2, 1]
    assert len(found.medians) == 2 and min(found.medians) > 0 and found.jitter >= 0
    assert min(found.medians) <= found.seconds <= max(found.medians)


def test_sets_are_four_times_the_cache() -> None:
    assert sets_needed(4 * 10**6, 50 * 10**6) == 50
    assert sets_needed(3 * 10**6, 50 * 10**6) == 67
    assert sets_needed(10**9, 50 * 10**6) == 2
    assert sets_needed(2**31, 50 * 10**6) == 1
    assert sets_needed(10, 50 * 10**6) == sets_needed(0, 50 * 10**6) == 512


class Graph:
    """As many calls as were captured, of three microseconds each."""

    captured: ClassVar[list[int]] = []

    def __init__(self, count: int) -> None:
        self.seconds = count * 3e-6
        self.captured.append(count)

    def reset(self) -> None:
        self.seconds = 0


@pytest.mark.parametrize(("sets", "counts"), [(10, [10, 670]), (512, [512, 1024]), (1200, [1200])])
def test_short_calls_are_captured_many_at_a_time(sets: int, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    Graph.captured.clear()
    monkeypatch.setattr(timing, "_eager", lambda calls, count: [1e-4] * count)
    monkeypatch.setattr(timing, "_captured", lambda calls, count: Graph(count))
    monkeypatch.setattr(timing, "_replays", lambda graph, count: [graph.seconds] * count)
    found = timed([lambda: None] * sets, torch.device("cuda"))
    assert list(found.medians) == pytest.approx([3e-6, 3e-6])
    assert Graph.captured == counts


def test_long_calls_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def eager(calls: list[Callable[[], object]], count: int) -> list[float]:
        counts.append(count)
        return [5e-3] * count

    monkeypatch.setattr(timing, "_eager", eager)
    assert timed([lambda: None], torch.device("cuda")).seconds == 5e-3
    assert counts == [5, 20, 20]


def test_events_lie_between_pieces_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock

        def elapsed_time(self, other: "Event") -> float:
            return (other.at - self.at) * 1e3

    def work() -> None:
        nonlocal clock
        clock += 0.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert timing._eager([work], 3) == [0.25] * 3

    class Replayed:
        replay = staticmethod(work)

    assert timing._replays(Replayed(), 2) == [0.25] * 2  # type: ignore[arg-type]


def test_the_floor_is_the_slower_of_two() -> None:
    assert CARD.floor(8e9) == 2.0
    assert CARD.floor(8e9, 0.8e12) == 2.0
    assert CARD.floor(8e9, 4e12) == 5.0
    assert CARD.floor(8e9, 4e12, rate=2.0) == 2.5
    assert Card(CPU, {}).floor(1) is None
    assert Card(CPU, {COPY: CARD.figures[COPY]}).floor(1, 1) is None
    assert rate(Timing((0.5, 0.25), 0.0), 2) == [4.0, 8.0]


def test_the_share_of_the_time_that_is_covered() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == pytest.approx(4 / 6)
    assert covered([(5, 6), (0, 1)]) == pytest.approx(2 / 6)
    assert covered([(3, 4)]) == 1.0
    assert covered([]) == covered([(1, 1)]) == 0.0


def test_workloads_have_the_lengths_that_they_say() -> None:
    lengths = nano()
    assert len(lengths) == 256
    assert all(100 <= count <= 1024 for pair in lengths for count in pair)
    assert mean(prompt for prompt, _ in lengths) == pytest.approx(562, rel=0.1)
    lengths = chats()
    assert len(lengths) == 1000
    assert all(4 <= count <= 2048 for pair in lengths for count in pair)
    assert mean(prompt for prompt, _ in lengths) == pytest.approx(220, rel=0.01)
    assert mean(output for _, output in lengths) == pytest.approx(200, rel=0.01)
    assert cut(lengths, engine.FULL) == lengths
    short = cut(lengths, engine.QUICK)
    assert len(short) == 30 and all(1 <= count <= 18 for pair in short for count in pair)
    assert cut([Lengths(2048, 1)], engine.QUICK) == [Lengths(18, 1)]


class Profile:
    """Two kernels, the launch of one, and whether it runs."""

    running = False

    def __init__(self, activities: Any) -> None:
        pass

    def start(self) -> None:
        Profile.running = True

    def stop(self) -> None:
        assert Profile.running
        Profile.running = False

    def events(self) -> list[Any]:
        def event(start: float, end: float, device: Any = DeviceType.CUDA) -> Any:
            span = type("Span", (), {"start": start, "end": end})
            return type("Event", (), {"time_range": span, "device_type": device})

        return [event(0, 1), event(3, 4), event(0, 4, DeviceType.CPU)]


@pytest.mark.parametrize(("steps", "share"), [(40, 0.5), (12, 0.5), (9, None)])
def test_the_profile_ends_with_the_run_at_the_latest(
    steps: int, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    watch = Busy(10, 5)
    for done in range(1, steps + 1):
        watch.after_step(done)
        assert Profile.running == (10 <= done < 15)
    watch.stop()
    assert not Profile.running
    assert watch.share == share


def test_a_run_that_breaks_stops_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(MODELS["toy"], CPU)
    offline = engine.Offline(model, engine.QUICK, longest=64)
    stopped = []

    class Watch(Busy):
        def after_step(self, done: int) -> None:
            raise RuntimeError("broken")

        def stop(self) -> None:
            stopped.append(True)

    with pytest.raises(RuntimeError, match="broken"):
        offline.run([Lengths(5, 3)], 0, Watch(0, 1))
    assert stopped == [True]
    assert offline.run([Lengths(5, 3), Lengths(7, 2)], 0).tokens == 5
    # On a GPU there is one case more.
    models = engine.Models(CPU)
    with pytest.raises(Skipped, match="saw no work"):
        list(engine._busy(models, "toy", "nano bench", [Lengths(5, 3)], engine.QUICK))


def test_a_model_is_made_once_and_dropped_for_the_next() -> None:
    models = engine.Models(CPU)
    first = models.get("toy")
    assert models.get("toy") is first
    models.drop()
    assert models.get("toy") is not first


def test_an_operation_is_replaced_for_a_while() -> None:
    with pytest.raises(ValueError, match="over"), engine._replaced("rms_norm", len):
        assert vars(decoder)["rms_norm"] is len
        raise ValueError("over")
    assert vars(decoder)["rms_norm"] is rms_norm


def test_weights_are_counted() -> None:
    """All that the decoder asks for but the norms and, where the head is another tensor, the embedding."""
    for name, config in MODELS.items():
        if name == "toy":
            sizes: list[int] = []

            def source(name: str, shape: tuple[int, ...], sizes: list[int] = sizes) -> torch.Tensor:
                made = torch.zeros(shape, dtype=torch.bfloat16)
                sizes.append(0 if name.endswith("norm.weight") else made.nbytes)
                return made

            decoder.Decoder(config, source, torch.bfloat16, CPU)
            assert weight_bytes(config) == sum(sizes)
    assert weight_bytes(MODELS["llama-3.1-8b"]) == pytest.approx(15.0e9, rel=0.01)


def test_errors_count_beside_the_magnitude() -> None:
    inf, nan = float("inf"), float("nan")
    one = torch.tensor([1.0, -inf, nan, 3.0])
    assert check.worst(one, one) == 0.0
    assert check.worst(torch.tensor([1.0, -inf, nan, 4.0]), one) == 0.25
    assert check.worst(torch.tensor([1.0, 0.0, nan, 3.0]), one) == inf
    assert check.worst(torch.tensor([nan, -inf, nan, 3.0]), one) == inf
    assert check.worst(one[:3], one) == inf
    assert check.worst(one[:0], one[:0]) == 0.0
    assert check.worst(torch.tensor([2**62 + 1]), torch.tensor([2**62])) == 0.0  # an error too small for a float
    assert check.differing(torch.tensor([2**62 + 1, 5]), torch.tensor([2**62, 5])) == 0.5
    assert check.differing(one[:1], one) == inf
    assert check.differing(one[:0], one[:0]) == 0.0


def test_what_is_moved_keeps_its_layout() -> None:
    cache = token_major(3, 2, 8, 4, torch.bfloat16, CPU)
    moved, number, words = check.moved((cache, 5, ["a", torch.ones(1)]), CPU)
    assert moved.key.stride() == cache.key.stride() and moved.key.data_ptr() != cache.key.data_ptr()
    assert (number, words[0], moved.block_size) == (5, "a", 4)


def wrong(check_of: Callable[[Card], Any]) -> list[Check]:
    return [one for one in check_of(CARD) if not one.ok]


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong(check._rms_norm) == []
    monkeypatch.setattr(check, "rms_norm", lambda x, weight, eps, residual=None: 1.1 * rms_norm(x, weight, eps))
    assert len(wrong(check._rms_norm)) == 6

    monkeypatch.setattr(check, "prepare", lambda state, request, buffers: None)
    monkeypatch.setattr(check, "update", lambda state, places, values: None)
    assert len(wrong(check._step_inputs)) == 4

    def other(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
        made = sample(logits, batch)
        return replace(made, tokens=made.tokens + 1, entropies=made.entropies * 1.01)

    monkeypatch.setattr(check, "sample", other)
    assert {one.name.partition(": ")[2] for one in wrong(check._sampling)} == {"share of other tokens", "entropies"}

    def attend(*args: Any, window: int, scale: float) -> torch.Tensor:
        return paged_attention(*args, window=0, scale=scale)

    monkeypatch.setattr(check, "paged_attention", attend)
    assert wrong(check._attention) and all("window" in one.name for one in wrong(check._attention))


def test_a_graph_that_goes_on_with_old_inputs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Queue:
        def capture(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
            result = work().clone()
            return lambda: result

    assert wrong(check._graphs) == []
    monkeypatch.setattr(check, "queue_for", lambda device: Queue())
    assert len(wrong(check._graphs)) == 3


def test_blocks_are_shuffled_and_others_for_each_set() -> None:
    pool = attention.Pool(CARD, shapes.QUICK.odd, torch.bfloat16, 10)
    first, second, third = (pool.tables(2, 30, index) for index in range(3))
    assert first.shape == (2, 2) and first.dtype == torch.int32
    assert len({*first.flatten().tolist(), *second.flatten().tolist()}) == 8
    assert torch.equal(third, first)
    assert not pool.cache.value[0].isnan().any() and pool.cache.value[0].std() > 0
    with pytest.raises(Skipped, match="needs 11 blocks of KV, and the card's memory holds 10"):
        pool.tables(1, 170, 0)


def test_a_pool_takes_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Card, "free", lambda self: 10_000)
    pool = attention.Pool(CARD, shapes.QUICK.odd, torch.bfloat16, 10**6)
    blocks = pool.cache.value.shape[0]
    assert 0 < blocks * (pool.cache.key[0].nbytes + pool.cache.value[0].nbytes) <= 8000


def test_attention_counts_keys_values_queries_and_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_MUCH", 1000)
    monkeypatch.setattr(Card, "time_calls", lambda self, calls: Timing((1e-6, 2e-6), 0.0))
    heads = shapes.Heads("small", 4, 2, 8)
    pool = attention.Pool(CARD, heads, torch.bfloat16, 20)
    figure = attention._decode(CARD, "x", heads, pool, 3, 40)
    size = 3 * 40 * 2 * 2 * 8 * 2 + 3 * 2 * 4 * 8 * 2
    assert figure.values == pytest.approx([size / 1e3, size / 2e3])
    assert (figure.limit, figure.target) == (4.0, 3.4)
    monkeypatch.setattr(attention, "_MUCH", 10_000)
    assert attention._decode(CARD, "x", heads, pool, 3, 40).target is None


def test_a_layer_has_four_products() -> None:
    assert [(outputs, inputs) for _, outputs, inputs in shapes.products(shapes.LLAMA)] == [
        (6144, 4096),
        (4096, 4096),
        (28_672, 4096),
        (4096, 14_336),
    ]


def test_a_graph_keeps_the_outputs_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Made:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            events.append(f"free {self.name}")

    class Captures(AbstractContextManager[None]):
        def __init__(self, graph: object) -> None:
            events.append("begin")

        def __exit__(self, *error: object) -> None:
            events.append("end")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Captures)
    timing._captured([lambda: Made("a"), lambda: Made("b")], 4)
    assert events[:4] == ["begin", "free a", "free b", "end"]


def test_the_engine_takes_the_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(MODELS["toy"], CPU)
    monkeypatch.setattr(engine, "step_bytes", lambda model, block_size, limits: 0)
    offline = engine.Offline(model, engine.QUICK._replace(blocks=None), longest=64)
    assert offline._blocks == 4 * 64 // engine.BLOCK_SIZE  # all that so many requests can use


def test_fp8_reads_half_as_much() -> None:
    models = engine.Models(CPU)
    (plain,) = engine._single(CARD, models, "toy", engine.QUICK)
    (rounded,) = engine._single(CARD, models, "toy", engine.QUICK, "fp8")
    assert plain.limit is not None and rounded.limit is not None
    assert rounded.name == "toy, one request at 18, fp8"
    weights = weight_bytes(MODELS["toy"])
    assert plain.limit - rounded.limit == pytest.approx(weights / 2 / 4e9 * 1e3)


def test_how_busy_the_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(engine, "_WATCHED", (1, 2))
    models = engine.Models(CPU)
    (figure,) = engine._busy(models, "toy", "nano bench", [Lengths(5, 6)], engine.QUICK)
    assert (figure.value, figure.share, figure.reached) == (50.0, 0.5, False)
