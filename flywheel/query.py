"""What does the log say? DuckDB over the table and over what isn't in it yet, so that a request just answered is found.

Three views: ``records``, ``feedback``, and ``judged``, which has the records that there is feedback on, with it. What
is sealed is opened as it is read, by whoever has the keys' file.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import duckdb
import msgspec
from arro3.core import RecordBatch
from arro3.core import Table as Rows
from deltalake import DeltaTable
from duckdb.func import FunctionNullHandling

from flywheel import scratch
from flywheel.columns import FEEDBACK_COLUMNS, RECORD_COLUMNS, Column, possible_batches, schema
from flywheel.compaction import Item, feedback_table, records_table
from flywheel.conversation import messages
from flywheel.log.folder import Segment
from flywheel.log.frame import START_SIZE, Frames, Kind
from flywheel.log.reading import all_segments, read_segment
from flywheel.record import Record, decode_feedback, decode_record
from flywheel.table import Table, folder_name, literal

_BATCH: Final = 400
_OPINIONS: Final = "score, label, correction, preferred, comment, received AS judged, key AS judged_by"

Unseal = Callable[[str, bytes], Mapping[str, bytes] | None]
"""What was sealed for a user, by name; None where the key is gone."""


class NoLogError(Exception):
    """There is no log in the folder."""


def require(folder: Path) -> None:
    """See that there is a log in a folder.

    Raises:
        NoLogError: there is none.
    """
    if not (folder / "segments").is_dir() and not (folder / "table").is_dir():
        raise NoLogError(f"There is no request log in {folder}. Which folder is it? Say so with --log.")


def connect(folder: Path, unseal: Unseal | None = None) -> duckdb.DuckDBPyConnection:
    """A database with the views of a log, as it is now.

    Args:
        folder: the log's.
        unseal: opens what is sealed.

    Raises:
        NoLogError: there is none.
        OSError, duckdb.Error, deltalake.exceptions.DeltaError: it can't be read.
    """
    require(folder)
    # First the segments, then the tables: what is compacted between the two is in both, and left out of the first.
    found = [(segment, data) for segment in all_segments(folder) if (data := read_segment(segment)) is not None]
    database = scratch.connect(folder)
    database.execute("SET TimeZone = 'UTC'")
    _make_view(database, "stored_records", records_table(folder), RECORD_COLUMNS, found, Kind.RECORD)
    _make_view(database, "feedback_as_is", feedback_table(folder), FEEDBACK_COLUMNS, found, Kind.FEEDBACK)
    _open_sealed(database, unseal)
    database.execute(
        f"CREATE VIEW judged AS SELECT * EXCLUDE (request_id_of_feedback) FROM records JOIN (SELECT request_id AS "
        f"request_id_of_feedback, {_OPINIONS} FROM feedback) ON request_id = request_id_of_feedback"
    )
    return database


def frames_after(segment: Segment, place: int) -> tuple[list[Record], int]:
    """The records in a segment behind ``place``, and where to go on next time; for whoever follows the log."""
    try:
        with segment.path.open("rb") as file:
            start = file.read(START_SIZE)
            file.seek(max(place, START_SIZE))
            frames = Frames(start + file.read())
    except (FileNotFoundError, ValueError):
        return [], place
    records = []
    for frame in frames:
        if frame.kind == Kind.RECORD:
            with contextlib.suppress(msgspec.DecodeError):
                records.append(decode_record(frame.body))
    return records, max(place, START_SIZE) + max(0, frames.end - START_SIZE)


def _make_view(
    database: duckdb.DuckDBPyConnection,
    name: str,
    table: Table,
    columns: tuple[Column, ...],
    found: Sequence[tuple[Segment, bytes]],
    kind: int,
) -> None:
    """A view of a table and of the frames of ``kind`` that it doesn't have yet."""
    opened = table.open()
    fresh = _fresh(found, opened, kind, columns)
    database.register(f"{name}_fresh", Rows.from_batches(fresh, schema=schema(columns)))
    parts = [f"SELECT * FROM {name}_fresh"]
    files = [] if opened is None else opened.file_uris()
    if opened is not None and files:
        partitions = opened.metadata().partition_columns
        types = ", ".join(f"{one}: {'DATE' if one == 'day' else 'VARCHAR'}" for one in partitions)
        paths = ", ".join(map(literal, files))
        model = f" REPLACE ({_model(table)} AS model)" if "model" in partitions else ""
        parts.append(
            f"SELECT *{model} FROM read_parquet([{paths}], hive_partitioning = true, union_by_name = true, "
            f"hive_types = {{{types}}})"
        )
    database.execute(f"CREATE VIEW {name} AS {' UNION ALL BY NAME '.join(parts)}")


def _model(table: Table) -> str:
    """A row's model, as SQL: as its folder is called, except of those that can't be called so."""
    models = {file.model for file in table.files() if file.model}
    cases = "".join(
        f" WHEN {literal(name)} THEN {literal(model)}"
        for model in models
        if unquote(name := folder_name(model)) != model
    )
    return f"CASE model{cases} ELSE coalesce(model, '') END" if cases else "coalesce(model, '')"


def _fresh(
    found: Sequence[tuple[Segment, bytes]], opened: DeltaTable | None, kind: int, columns: tuple[Column, ...]
) -> list[RecordBatch]:
    """What the table doesn't have yet, as rows."""
    decode: Callable[[bytes], Item] = decode_record if kind == Kind.RECORD else decode_feedback
    done: dict[str, int] = {}
    batches: list[RecordBatch] = []
    rows: list[Item] = []
    for segment, data in found:
        if segment.writer not in done:
            done[segment.writer] = (opened.transaction_version(segment.writer) or 0) if opened is not None else 0
        if segment.number <= done[segment.writer]:
            continue
        for frame in _frames(data):
            if frame[0] != kind:
                continue
            with contextlib.suppress(msgspec.DecodeError):
                rows.append(decode(frame[1]))
            if len(rows) >= _BATCH:
                batches += (batch for batch, _ in possible_batches(rows, columns))
                rows = []
    batches += (batch for batch, _ in possible_batches(rows, columns))
    return batches


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    with contextlib.suppress(ValueError):  # no segment: compaction says so
        for frame in Frames(data):
            yield frame.kind, frame.body


def _open_sealed(database: duckdb.DuckDBPyConnection, unseal: Unseal | None) -> None:
    """The views that everybody uses: what is sealed is opened, where that is possible."""

    def open_one(user: str | None, sealed: bytes | None, name: str) -> str | None:
        if unseal is None or sealed is None:
            return None
        value = (unseal(user or "", sealed) or {}).get(name)
        if value is None:
            return None
        return (messages(value) if name == "output" else value).decode("utf-8", "replace")

    database.create_function(
        "open_sealed",
        open_one,
        ["VARCHAR", "BLOB", "VARCHAR"],
        "VARCHAR",
        null_handling=FunctionNullHandling.SPECIAL,
        side_effects=False,
    )
    opened = {
        name: ", ".join(
            f"coalesce({column}, CASE WHEN sealed IS NOT NULL THEN open_sealed(\"user\", sealed, '{column}') END) "
            f"AS {column}"
            for column in columns
        )
        for name, columns in (("records", ("input", "output")), ("feedback", ("correction", "preferred", "comment")))
    }
    database.execute(
        f"CREATE VIEW records AS SELECT * REPLACE ({opened['records']}), first_token AS ttft, "
        "nullif(last_token - first_token, 0) / nullif(output_tokens - 1, 0) AS itl FROM stored_records"
    )
    database.execute(f"CREATE VIEW feedback AS SELECT * REPLACE ({opened['feedback']}) FROM feedback_as_is")
