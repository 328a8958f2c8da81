"""`bench.limits`: everything is measured, every figure is in the table, and the bounds are kept to."""

from bench.limits import LIMIT, measure, page
from bench.redis_server import find


def test_limits_are_measured() -> None:
    result = measure(200)
    there = find() is not None
    assert len(result.rows) == (8 if there else 6)
    assert all(row.median > 0 and row.p99 > 0 for row in result.rows)
    text = page(result)
    assert all(row.what in text for row in result.rows)
    assert (result.over is not None) == there
    if result.over is not None:
        assert result.over.answering == LIMIT
        assert LIMIT < result.over.killed <= 2 * LIMIT
        assert f"the bound is {2 * LIMIT:,}" in text
