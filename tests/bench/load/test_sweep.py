import random

import pytest

from bench.load.driver import Progress
from bench.load.sweep import Growth, Level, Sample, Sweep, find_knee, grows, knee


def holding(knee: float) -> "tuple[list[float], object]":
    asked: list[float] = []

    def ask(rate: float) -> Level:
        asked.append(rate)
        return Level(rate=rate, goodput=1.0 if rate <= knee else 0.1, held=rate <= knee)

    return asked, ask


@pytest.mark.parametrize("knee", [0.3, 1.0, 7.3, 64.0, 1000.0])
@pytest.mark.parametrize("precision", [0.02, 0.1])
def test_the_knee_is_found_to_the_precision(knee: float, precision: float) -> None:
    asked, ask = holding(knee)
    levels, low, high = find_knee(ask, 4.0, precision)  # type: ignore[arg-type]
    assert low is not None
    assert high is not None
    assert low <= knee < high <= low * (1 + precision)
    assert [level.rate for level in levels] == asked
    assert len(asked) == len(set(asked)) <= 20


def test_the_rate_doubles_first_and_is_halved_after() -> None:
    asked, ask = holding(11.0)
    find_knee(ask, 2.0, 0.1)  # type: ignore[arg-type]
    assert asked == [2, 4, 8, 16, 12, 10, 11]


def test_where_nothing_holds_and_where_everything_does() -> None:
    asked, ask = holding(0.0)
    assert find_knee(ask, 4.0)[1:] == (None, 4.0 / 2**10)  # type: ignore[arg-type]
    assert len(asked) == 11
    _, ask = holding(1e300)
    levels, low, high = find_knee(ask, 4.0, levels=5)  # type: ignore[arg-type]
    assert (len(levels), low, high) == (5, 64.0, None)


def simulated(rate: float, capacity: float, service: float, seconds: float, seed: int) -> float | None:
    """When a queue of Poisson arrivals at a rate-limited server is said to grow without bound; None if never.

    A request is admitted at most ``capacity`` times a second, and takes an exponential time of mean ``service``.
    """
    rng, growth, progress = random.Random(seed), Growth(patience=0.5), Progress()
    requests: list[tuple[float, float, float]] = []
    at = free = 0.0
    while at < seconds:
        at += rng.expovariate(rate)
        free = max(free + 1 / capacity, at)
        requests.append((at, free, free + rng.expovariate(1 / service)))
    for step in range(1, int(seconds * 4)):
        now = progress.elapsed = step / 4
        progress.offered = sum(at <= now for at, _, _ in requests)
        progress.waiting = sum(at <= now < first for at, first, _ in requests)
        progress.finished = sum(end <= now for _, _, end in requests)
        if growth.note(progress):
            return now
    return None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rate", "service"), [(20, 0.5), (20, 5.0), (100, 20.0), (5, 1.0)])
def test_a_queue_that_holds_is_left_alone(rate: float, service: float, seed: int) -> None:
    assert simulated(rate, rate * 2, service, 30, seed) is None
    assert simulated(rate, rate * 1.1, service, 30, seed) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rate", "service"), [(40, 0.5), (100, 20.0), (40, 2.0)])
def test_a_queue_that_grows_is_noticed(rate: float, service: float, seed: int) -> None:
    for overload in (1.3, 2.0, 10.0):
        assert simulated(rate, rate / overload, service, 30, seed) is not None


def test_a_few_samples_say_nothing() -> None:
    steep = [Sample(i / 4, i * 100, i * 50) for i in range(30)]
    assert grows(steep, 0.5)
    assert not grows(steep[:11], 0.5)
    assert not grows(steep, 2.0)  # the window is too short to lose patience
    assert not grows([Sample(i / 4, i * 100, 300) for i in range(30)], 0.5)
    assert not grows([Sample(i / 4, i * 10_000, i * 50) for i in range(30)], 0.5)  # nobody waits long
    assert not grows([Sample(i / 4, i * 100, min(i * 50, 700)) for i in range(60)], 0.5)  # it has come to rest


def test_nothing_is_said_before_the_first_token() -> None:
    growth = Growth(0.5)
    assert not any(growth.note(Progress(elapsed=i / 4, offered=i * 100, waiting=i * 100)) for i in range(100))


def test_a_sweep_that_is_interrupted_keeps_what_it_has() -> None:
    answers = iter([Level(rate=4.0, goodput=1.0, held=True), None])
    levels, low, high = find_knee(lambda rate: next(answers), 4.0)
    assert ([level.rate for level in levels], low, high) == ([4.0], 4.0, None)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (8.0, 9.0, "the knee is at 8/s: 95% of requests within ttft=1s hold there, and no more at 9/s"),
        (None, 2.0, "no rate held 95% of requests within ttft=1s: the lowest tried was 2/s"),
        (64.0, None, "every rate held 95% of requests within ttft=1s, up to 64/s"),
    ],
)
def test_the_knee_in_words(low: float | None, high: float | None, said: str) -> None:
    levels = [Level(rate=rate, goodput=1.0, held=True) for rate in (2.0, 4.0)]
    found = Sweep(slo="ttft=1s", share=0.95, precision=0.05, highest=low, lowest_failing=high, levels=levels)
    assert knee(found) == said


def test_nothing_was_measured() -> None:
    found = Sweep(slo="", share=0.95, precision=0.05, highest=None, lowest_failing=None, levels=[])
    assert knee(found) == "no level was measured"
