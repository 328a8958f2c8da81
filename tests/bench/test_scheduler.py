"""`bench.scheduler`: every row can be measured."""

from bench.scheduler import add_row, build, decode_row, drain_row


def test_rows_measure_what_they_say() -> None:
    scheduler, now = build(5, 7, 2, length=64)
    report = scheduler.load(now)
    assert (report.running, report.waiting) == (5, 7)
    scheduler, now = build(5, 7, 2, 9, length=64)
    report = scheduler.load(now)
    assert (report.running, report.waiting) == (5 + 5, 7 + 4), "as many background requests run besides"
    assert min(decode_row(2, 3, 1, steps=3)) > 0
    mean, longest, steps = drain_row(20, 4)
    assert 0 < mean <= longest and steps > 16
    assert add_row(64) > 0
