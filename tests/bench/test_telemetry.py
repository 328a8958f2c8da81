"""What telemetry costs a request, measured with a collector in a process of its own."""

from bench.machine import describe
from bench.telemetry import ALONE, BOTH, LOG, SIDES, Result, measure, page


def test_every_side_is_measured_and_nothing_is_lost() -> None:
    found = measure(requests=400, turns=1)
    assert list(found.turns) == [side.name for side in SIDES]
    assert all(len(costs) == 1 and costs[0] > 0 for costs in found.turns.values())
    assert found.lost == 0


def test_the_page() -> None:
    turns = {side.name: [3.0, 1.0, 2.0] for side in SIDES} | {BOTH.name: [7.0, 2.5, 6.0]}
    found = Result("today", describe(), {"x": "1"}, 100, turns, 0)
    assert found.beside_a_log == 4.0 and found.median(ALONE) == 2.0 and found.median(LOG) == 2.0
    text = page(found)
    assert "| log | 2.0 | 1.0 | 3.0 |" in text
    assert "At 1 %, telemetry costs 4.0 µs beside a log (target: 5;" in text and "and 2.0 µs alone" in text
