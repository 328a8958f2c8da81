"""`bench.prefix_index`: a small index is measured, and every figure is in the table."""

import pytest

from bench import prefix_index
from bench.machine import describe
from bench.prefix_index import Result, full_index, measure, page


@pytest.mark.parametrize("exact", [True, False])
def test_the_index_that_is_measured_is_full(exact: bool) -> None:
    index, chains = full_index(2, exact, False, 4000)
    assert all(4000 - prefix_index.BLOCKS <= index.held(f"worker-{number}") <= 4000 for number in range(2))
    assert all(len(one) == 768 for one in chains)


def test_a_row_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_index, "BLOCKS", 128)
    rows = [measure(2, exact=exact, fast=False, blocks=1500) for exact in (True, False)]
    assert all(row.bytes_a_block > 24 and row.lookup > 0 and row.placed > 0 for row in rows)
    assert rows[0].events is not None and rows[1].events is None
    text = page(Result("2026-01-01", describe(), {"numpy": "2"}, rows, 12.34))
    assert text.count("| Python |") == 2 and "12.3 µs" in text
