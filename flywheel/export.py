"""How do records leave the log, for whoever trains on them or looks at them elsewhere?"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple

import duckdb
import msgspec

from flywheel.statement import execute, rows
from flywheel.table import literal

Format = Literal["parquet", "jsonl", "openai-chat"]
FORMATS: Final[tuple[Format, ...]] = ("parquet", "jsonl", "openai-chat")
_BATCH: Final = 500


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
    """Write records, oldest first.

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
    ((total,),) = rows(execute(database, f"SELECT count(*) FROM records WHERE {where}"))
    if format == "parquet":
        copy = (
            f"COPY (SELECT * EXCLUDE (sealed) FROM records WHERE {where} ORDER BY received) TO {literal(str(out))} "
            "(FORMAT parquet, COMPRESSION zstd)"
        )
        execute(database, copy, progress=lambda share: progress(int(share * total), total) if progress else None)
        if progress is not None:
            progress(total, total)
        return Exported(total, 0)
    assert not isinstance(out, Path)
    lines = _objects(database, where) if format == "jsonl" else _conversations(database, where)
    done = left_out = 0
    for line in lines:
        done += 1
        if line is None:
            left_out += 1
        else:
            out.write(line + b"\n")
        if progress is not None and done % _BATCH == 0:
            progress(done, total)
    if progress is not None:
        progress(total, total)
    return Exported(done - left_out, left_out)


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
