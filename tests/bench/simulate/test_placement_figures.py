"""`bench.simulate.placement_figures`: how runs become a page."""

from math import sqrt

import pytest

from bench.simulate.placement_figures import geometric, page, points, ratios, worse
from bench.simulate.placement_runs import Case, Kept, Knee, Outcome, Run

CASE = Case("chats", 200_000, "ours", 8, 3000)


def outcome(seconds: float, good: float) -> Outcome:
    return Outcome(p50=seconds, p99=seconds, mean=seconds, good=good, timely=good, hits=0.5, busiest=1.0)


def kept(*runs: tuple[int, float, str, float, float]) -> Kept:
    """Runs of (seed, load, policy, TTFT, share of good ones)."""
    made = Kept()
    made.keep(Knee(CASE, 1, 12.5, 0.75))
    for seed, load, policy, seconds, good in runs:
        made.keep(Run(CASE, seed, load, policy, outcome(seconds, good)))
    return made


def test_ratios_are_to_the_best_of_each_point() -> None:
    made = kept(
        (1, 0.9, "held", 1.0, 0.9), (1, 0.9, "Dynamo", 2.0, 0.6), (1, 0.9, "cache_aware", 4.0, 0.5),
        (2, 0.9, "held", 3.0, 0.9), (2, 0.9, "Dynamo", 7.0, 0.3), (2, 0.9, "cache_aware", 3.0, 0.6),
        (1, 0.9, "immediate", 0.1, 1.0),
    )  # fmt: skip
    mean = geometric([ratios(outcomes, "held") for outcomes in points(made).values()])
    assert mean.p99 == mean.mean == pytest.approx(sqrt(0.5))
    assert mean.good == mean.timely == pytest.approx(1.5)


def test_what_is_a_tenth_worse_is_listed() -> None:
    made = kept(
        (1, 0.8, "held", 1.2, 0.9), (1, 0.8, "Dynamo", 1.0, 0.9),
        (1, 0.5, "held", 1.09, 0.8), (1, 0.5, "Dynamo", 1.0, 0.9),
        (1, 0.9, "held", 9.0, 0.1), (1, 0.9, "Dynamo", 1.0, 0.9),
        (2, 0.5, "held", 9.0, 0.1),
    )  # fmt: skip
    found = [(point[2], name, round(times, 3)) for point, name, times in worse(made)]
    assert found == [(0.8, "p99 TTFT", 1.2), (0.8, "mean TTFT", 1.2), (0.5, "good", 1.125)]
    text = page(made, "a machine")
    assert "seed 1, load 0.5: good 1.12 times the best's" in text


def test_a_page_has_every_run() -> None:
    made = kept((1, 0.9, "held", 1.0, 0.9), (1, 0.9, "Dynamo", 2.0, 0.6), (1, 1.0, "lmetric", 0.5, 1.0))
    text = page(made, "a machine", notes="Take care.")
    assert "| 8 ours | held | 0.9 | 1 | 0.50 (0.50-0.50)" in text
    assert "| **held** | 0.9 | 1.00 |" in text and "| Dynamo | 0.9 | 2.00 |" in text and "| **lmetric** | 1 |" in text
    assert "12.50 requests/s" in text and "75.0%" in text
    assert "Take care." in text and "Nothing was run there." in text
    calm = kept((1, 0.8, "held", 1.0, 0.9), (1, 0.8, "Dynamo", 2.0, 0.6))
    assert "in 1 comparisons" in page(calm, "a machine")
