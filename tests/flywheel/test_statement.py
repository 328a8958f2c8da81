"""`flywheel.statement`: what takes long can be watched, and given up."""

import _thread
import signal
import threading

import duckdb
import pytest

from flywheel.statement import execute, rows

LONG = "SELECT count(*) FROM range(100000) one, range(10000000) other WHERE one.range + other.range < 0"


def test_rows_come_as_they_are() -> None:
    with duckdb.connect() as database:
        result = execute(database, "SELECT range FROM range($most)", {"most": 1234})
        assert [row[0] for row in rows(result)] == list(range(1234))
        with pytest.raises(duckdb.ParserException):
            execute(database, "SELEC")


@pytest.mark.parametrize("sql", [LONG, f"SELECT 1 UNION ALL ({LONG})"])
def test_ctrl_c_ends_it(sql: str) -> None:
    """Whether it is looking for its first rows or for more; by itself it would take hours."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # not there in a process begun in the background
    try:
        with duckdb.connect() as database:
            threading.Timer(0.5, _thread.interrupt_main).start()
            with pytest.raises(KeyboardInterrupt):
                list(rows(execute(database, sql, progress=lambda share: None)))
            assert list(rows(execute(database, "SELECT 1"))) == [(1,)]
    finally:
        signal.signal(signal.SIGINT, before)
