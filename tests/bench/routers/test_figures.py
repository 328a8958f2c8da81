import pytest

from bench.load.records import Record
from bench.routers.figures import Judging, imbalance, judge


def record(index: int, **more: object) -> Record:
    """A request at second ``index`` that is answered in time, ten tokens in a second, unless said otherwise."""
    at = float(index)
    fields: dict[str, object] = {"at": at, "sent": at, "first": at + 0.5, "last": at + 0.5 + 9 * 0.04, "end": at + 1}
    fields |= {"outcome": "ok", "prompt_tokens": 1000, "cached_tokens": 100, "output_tokens": 10}
    return Record(index=index, **(fields | more))  # type: ignore[arg-type]


def test_figures_of_answers() -> None:
    told = judge([record(index, first=index + 0.1 * (index + 1)) for index in range(10)], Judging(warm_up=0.0))
    assert (told.offered, told.rate, told.offered_rate) == (10, 1.0, 1.0)
    assert told.ttft_mean == pytest.approx(0.55)
    assert told.ttft_p50 == pytest.approx(0.55)
    assert told.ttft_p99 == pytest.approx(0.991)
    assert told.hit_rate == pytest.approx(0.1)
    assert told.errors == {}


@pytest.mark.parametrize(
    ("more", "good"),
    [
        ({"first": 1.2}, True),
        ({"first": 1.21, "last": 1.6}, False),  # 1 s, and 0.2 s for the prompt
        ({"last": 0.5 + 9 * 0.051}, False),
        ({"output_tokens": 1, "last": 0.5}, True),
        ({"outcome": "failed"}, False),
        ({"outcome": "ok", "first": None, "last": None}, False),
    ],
)
def test_what_is_good(more: dict[str, object], good: bool) -> None:
    assert Judging().good(record(0, **more)) is good


def test_at_speed_everything_is_due_sooner() -> None:
    one = record(0, first=0.4, last=0.4 + 9 * 0.02)
    assert Judging().good(one)
    assert not Judging(speed=4).good(one)
    assert Judging(speed=2).good(one)


def test_the_beginning_is_not_judged_but_its_errors_are_told() -> None:
    records = [record(0, outcome="failed", error="HTTP 500"), *map(record, range(1, 10))]
    told = judge(reversed(records), Judging(warm_up=0.1))
    assert (told.offered, told.goodput, told.errors) == (9, 1.0, {"failed: HTTP 500": 1})


def test_what_was_not_answered_counts_against_goodput_and_rate() -> None:
    records = [record(index, outcome="ok" if index % 2 else "timeout") for index in range(20)]
    told = judge(records, Judging(warm_up=0.0))
    assert (told.offered, told.goodput, told.rate) == (20, 0.5, 0.5)


def test_a_run_without_answers_has_no_figures() -> None:
    with pytest.raises(ValueError, match="no request was answered"):
        judge([record(0, outcome="failed")], Judging())


def test_imbalance() -> None:
    assert imbalance([1, 2, 3]) == 1.5
    assert imbalance([4, 0, 0, 0]) == 4
    assert imbalance([0, 0]) == 1
