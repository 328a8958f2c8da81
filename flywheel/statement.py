"""How does a long statement run so that one can watch it, and stop it? In a thread, while this one waits.

DuckDB doesn't look at signals in the middle of its work: Ctrl-C would have to wait until that is done.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Final, TypeVar

import duckdb

T = TypeVar("T")

_LOOK_EVERY: Final = 0.2  # seconds
_BATCH: Final = 500


def execute(
    database: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Mapping[str, Any] | None = None,
    progress: Callable[[float], None] | None = None,
) -> duckdb.DuckDBPyConnection:
    """Run a statement; its `rows` can be had then.

    Args:
        database: where.
        sql: what.
        parameters: by their names in it.
        progress: is told the share (0 to 1) that is done, as far as DuckDB knows.

    Raises:
        duckdb.Error: it can't be run.
    """
    if progress is not None:
        database.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")

    def tell() -> None:
        if progress is not None:
            progress(max(0.0, database.query_progress()) / 100)

    return _watched(database, lambda: database.execute(sql, parameters), tell)


def rows(result: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    """What a statement has found, some rows at a time."""
    while some := _watched(result, lambda: result.fetchmany(_BATCH)):
        yield from some


def _watched(database: duckdb.DuckDBPyConnection, work: Callable[[], T], tell: Callable[[], None] = lambda: None) -> T:
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(work)
        try:
            while wait([running], timeout=_LOOK_EVERY).not_done:
                tell()
        except BaseException:  # Ctrl-C, most likely
            database.interrupt()
            raise
        return running.result()
