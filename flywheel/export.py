"""How do records leave the log, for whoever trains on them or looks at them elsewhere?"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final, Literal, NamedTuple

import duckdb
import msgspec

from flywheel.statement import execute, rows
from flywheel.table import literal

Format = Literal["parquet", "jsonl", "openai-chat"]
FORMATS: Final[tuple[Format, ...]] = ("parquet", "jsonl", "openai-chat")
_BATCH: Final = 500
_TOGETHER: Final = 64 << 20  # bytes of records that are sorted at a time
_SOME: Final = 1000  # records that are looked at for their size
_BESIDES: Final = 1000  # bytes of a record that are no text
_PARQUET: Final = "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 8192)"


class Exported(NamedTuple):
    """``rows`` were written; ``left_out`` have no conversation to write."""

    rows: int
    left_out: int


def export(
    database: duckdb.DuckDBPyConnection,
    format: Format,
    out: IO[bytes] | Path,
    where: str = "true",
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write records, oldest first. Memory is for some tens of MiB of them, however many there are.

    Args:
        database: of `flywheel.query.connect`.
        format: ``parquet``, all columns; ``jsonl``, an object a line; or ``openai-chat``, a conversation a line, as
            fine-tuning takes it: what was asked, then the answer, or the correction where there is feedback with one.
        out: a file that is open; of ``parquet``, where it is to be.
        where: an SQL condition on ``records``.
        progress: is told how many of how many rows are done.

    Raises:
        duckdb.Error: the condition is none, or the disk doesn't take it.
    """
    database.execute("SET parquet_metadata_cache = true")
    where = f"({where}\n)"  # it may end in a comment
    windows = _windows(database, where)
    total = sum(window.rows for window in windows)
    tell: Callable[[int], None] = (lambda done: None) if progress is None else lambda done: progress(done, total)
    if isinstance(out, Path):
        _to_parquet(database, out, windows, tell)
        return Exported(total, 0)
    lines = _objects if format == "jsonl" else _conversations
    done = left_out = 0
    for line in chain.from_iterable(lines(database, window.where) for window in windows):
        done += 1
        if line is None:
            left_out += 1
        else:
            out.write(line + b"\n")
        if done % _BATCH == 0:
            tell(done)
    tell(total)
    return Exported(done - left_out, left_out)


class _Window(NamedTuple):
    """A range of time. ``where``: which records are in it, in SQL; ``rows``: how many."""

    where: str
    rows: int


def _windows(database: duckdb.DuckDBPyConnection, where: str) -> list[_Window]:
    """Ranges of time, oldest first, with about `_TOGETHER` bytes of the records that ``where`` is true of.

    To sort all of them at once would take as much memory as they have bytes, and DuckDB gives up where there is less.
    """
    some = f"SELECT strlen(coalesce(input, '')) + strlen(coalesce(output, '')) FROM records WHERE {where} LIMIT {_SOME}"
    sizes = [size for (size,) in rows(execute(database, some))]
    most = max(1, _TOGETHER * len(sizes) // (sum(sizes) + _BESIDES * len(sizes) or 1))
    seconds = execute(
        database,
        f"SELECT date_trunc('second', received) AS second, count(*) FROM records WHERE {where} "
        "GROUP BY second ORDER BY second",
    )
    windows: list[_Window] = []
    begin: datetime | None = None
    count = 0
    for at, more in rows(seconds):
        if begin is not None and count + more > most:
            windows.append(_window(where, begin, at, count))
            begin, count = at, 0
        begin, count = begin or at, count + more
    if begin is not None:
        windows.append(_window(where, begin, None, count))
    return windows


def _window(where: str, begin: datetime, end: datetime | None, count: int) -> _Window:
    until = "" if end is None else f" AND received < TIMESTAMPTZ '{end.isoformat()}'"
    return _Window(f"received >= TIMESTAMPTZ '{begin.isoformat()}'{until} AND {where}", count)


def _to_parquet(
    database: duckdb.DuckDBPyConnection, out: Path, windows: Sequence[_Window], tell: Callable[[int], None]
) -> None:
    """A file for each window, then one of all, in their order."""
    with TemporaryDirectory(prefix=".penstock-export-", dir=out.parent) as folder:
        parts = []
        done = 0
        for number, window in enumerate(windows):
            parts.append(str(Path(folder) / f"{number}.parquet"))
            found = f"SELECT * EXCLUDE (sealed) FROM records WHERE {window.where} ORDER BY received"
            execute(database, f"COPY ({found}) TO {literal(parts[-1])} {_PARQUET}")
            done += window.rows
            tell(done)
        together = f"SELECT * FROM read_parquet([{', '.join(map(literal, parts))}])"
        nothing = "SELECT * EXCLUDE (sealed) FROM records WHERE false"
        execute(database, f"COPY ({together if parts else nothing}) TO {literal(str(out))} {_PARQUET}")


def to_json(value: Any) -> bytes:
    """A row's values as JSON; bytes in base64."""
    return msgspec.json.encode(value, enc_hook=str)


def _objects(database: duckdb.DuckDBPyConnection, where: str) -> Iterator[bytes]:
    result = execute(database, f"SELECT * EXCLUDE (sealed) FROM records WHERE {where} ORDER BY received")
    names = [column[0] for column in result.description or ()]
    for row in rows(result):
        yield to_json(dict(zip(names, row, strict=True)))


def _conversations(database: duckdb.DuckDBPyConnection, where: str) -> Iterator[bytes | None]:
    result = execute(
        database,
        "SELECT input, output, (SELECT arg_max(correction, received) FROM feedback WHERE feedback.request_id = "
        f"records.request_id) FROM records WHERE {where} ORDER BY received",
    )
    for asked, answered, correction in rows(result):
        yield _conversation(asked, answered, correction)


def _conversation(asked: str | None, answered: str | None, correction: str | None) -> bytes | None:
    """One line, or None where the record has no chat."""
    if asked is None:
        return None
    try:
        request = msgspec.json.decode(asked)
        answers = [] if answered is None else msgspec.json.decode(answered)
    except msgspec.DecodeError:
        return None
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
        return None
    if correction is not None:
        answer: Any = {"role": "assistant", "content": correction}
    elif isinstance(answers, list) and answers:
        answer = answers[0]
    else:
        return None
    line: dict[str, Any] = {"messages": [*request["messages"], answer]}
    if request.get("tools"):
        line["tools"] = request["tools"]
    return msgspec.json.encode(line)
