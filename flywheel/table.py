"""How do rows get into a Delta Lake table, once each, and what keeps the table small and quick?

DuckDB writes the Parquet files (zstd, one per partition and commit) and deltalake commits them: deltalake's own writer
takes 24 µs of CPU for a record of 5 kB, DuckDB 10 µs (EPYC, duckdb 2.0, deltalake 1.6). With the files goes, as Delta's
application transaction, how far each writer's segments are in the table: both are there, or neither is.

Only ``received`` has statistics in the table's log: those of a text would be a piece of it, and outlive its erasure.
"""

import datetime
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import time
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

import duckdb
import msgspec
from arro3.core import RecordBatch
from arro3.core import Table as Rows
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties
from deltalake.exceptions import TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from flywheel.columns import PARTITIONS, Column, schema
from flywheel.log.folder import sync_folder

_CONFIGURATION: Final = {"delta.dataSkippingStatsColumns": "received", "delta.checkpointInterval": "20"}
_NOWHERE: Final = "__HIVE_DEFAULT_PARTITION__"
_ROW_GROUP: Final = 20_480
_TARGET_BYTES: Final = 256 << 20
_WRITER: Final = WriterProperties(compression="ZSTD", compression_level=1)


class Part(NamedTuple):
    """Rows of one partition. ``first`` and ``last``: the range of their ``received``, in microseconds."""

    day: datetime.date
    model: str
    batches: Sequence[RecordBatch]
    first: int
    last: int


class File(NamedTuple):
    """A file of the table. ``path``: from the table's folder; ``day`` and ``model``: its partition; ``size`` in bytes.

    ``stats``: what Delta keeps of its statistics, as JSON.
    """

    path: str
    day: datetime.date
    model: str
    size: int
    rows: int
    stats: str

    def values(self, partitions: Iterable[str]) -> dict[str, str | None]:
        """Of the partition, as Delta has them."""
        return partition_values(self.day, self.model, partitions)


def partition_values(day: datetime.date, model: str, partitions: Iterable[str]) -> dict[str, str | None]:
    """What Delta calls a partition: its columns' values, as texts."""
    known: dict[str, str | None] = {"day": day.isoformat(), "model": model or None}
    return {name: known[name] for name in partitions}


class Table:
    """A Delta Lake table in a folder of its own, which is made with the first rows.

    Args:
        path: the folder.
        columns: what it has.
        partitions: those of the columns that make its folders; ``day``, or `PARTITIONS`.
    """

    def __init__(self, path: Path, columns: Sequence[Column], partitions: Sequence[str] = PARTITIONS) -> None:
        self._path = path
        self._columns = columns
        self._partitions = list(partitions)

    def open(self) -> DeltaTable | None:
        """Its newest version; None while there is none."""
        try:
            return DeltaTable(str(self._path))
        except TableNotFoundError:
            return None

    def done(self, writers: Iterable[str]) -> dict[str, int]:
        """The number of each writer's last segment that is in the table; 0 where none is."""
        table = self.open()
        if table is None:
            return dict.fromkeys(writers, 0)
        return {writer: table.transaction_version(writer) or 0 for writer in writers}

    def add(self, parts: Iterable[Part], done: Mapping[str, int], database: duckdb.DuckDBPyConnection) -> None:
        """Add rows and note how far each writer's segments are in the table now, in one commit, and wait for the disk.

        Raises:
            deltalake.exceptions.CommitFailedError: somebody else has added the same segments meanwhile.
            OSError, duckdb.IOException: the disk doesn't take it.
        """
        table = self.open() or self._create()
        actions = [self._write(part, database) for part in parts]
        table.create_write_transaction(
            list(actions),
            "append",
            table.schema(),
            self._partitions,
            commit_properties=CommitProperties(
                app_transactions=[Transaction(writer, number) for writer, number in done.items()]
            ),
        )
        self._sync([self._path / action.path for action in actions])

    def files(self) -> list[File]:
        """Those of the newest version."""
        table = self.open()
        return [] if table is None else list(_files(table))

    def delete(self, predicate: str) -> None:
        """Remove the rows that an SQL predicate is true of. `vacuum` frees their room."""
        table = self.open()
        if table is not None:
            table.delete(predicate)

    def blank(self, predicate: str, columns: Mapping[str, str], database: duckdb.DuckDBPyConnection) -> int:
        """Set ``columns`` to SQL expressions where ``predicate`` is true, in files that are written anew; how many.

        Not with deltalake's own update: that notes the predicate in the table's log, and so the name in it.
        """
        table = self.open()
        known = {} if table is None else {str(self._path / file.path): file for file in _files(table)}
        if table is None or not known:
            return 0
        paths = ", ".join(map(literal, known))
        rows = f"read_parquet([{paths}], filename = true, union_by_name = true, hive_partitioning = false)"
        affected = database.execute(f"SELECT DISTINCT filename FROM {rows} WHERE {predicate}").fetchall()
        blanked = ", ".join(
            f'CASE WHEN {predicate} THEN {value} ELSE "{name}" END AS "{name}"' for name, value in columns.items()
        )
        actions: list[AddAction | RemoveAction] = []
        for (path,) in affected:
            file = known[path]
            query = f"SELECT * REPLACE ({blanked}) FROM read_parquet({literal(path)}, hive_partitioning = false)"
            actions.append(RemoveAction(file.path, True, int(time() * 1000), file.size, file.values(self._partitions)))
            actions.append(self._copy(query, file.values(self._partitions), file.stats, database))
        if actions:
            table.create_write_transaction(actions, "append", table.schema(), self._partitions)
            self._sync([self._path / action.path for action in actions if isinstance(action, AddAction)])
        return len(affected)

    def merge_small_files(self, before: datetime.date) -> int:
        """Make few large files of many small ones in partitions of days before ``before``; how many are gone."""
        table = self.open()
        if table is None:
            return 0
        filters = [("day", "<", before.isoformat())]
        found = table.optimize.compact(partition_filters=filters, target_size=_TARGET_BYTES, writer_properties=_WRITER)
        return int(found["numFilesRemoved"])

    def vacuum(self, hours: int = 0) -> int:
        """Remove files that no version of the last ``hours`` has, those of interrupted commits too; how many."""
        table = self.open()
        if table is None:
            return 0
        return len(table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True))

    def _create(self) -> DeltaTable:
        return DeltaTable.create(
            str(self._path), schema(self._columns), partition_by=self._partitions, configuration=_CONFIGURATION
        )

    def _write(self, part: Part, database: duckdb.DuckDBPyConnection) -> AddAction:
        """Write one file."""
        values = partition_values(part.day, part.model, self._partitions)
        statistics = {
            "numRecords": sum(batch.num_rows for batch in part.batches),
            "minValues": {"received": _time(part.first)},
            "maxValues": {"received": _time(part.last)},
            "nullCount": {"received": 0},
        }
        database.register("rows_to_write", Rows.from_batches(part.batches))
        try:
            query = f"SELECT * EXCLUDE ({', '.join(self._partitions)}) FROM rows_to_write"
            return self._copy(query, values, msgspec.json.encode(statistics).decode(), database)
        finally:
            database.unregister("rows_to_write")

    def _copy(
        self, query: str, values: Mapping[str, str | None], statistics: str, database: duckdb.DuckDBPyConnection
    ) -> AddAction:
        """Write what ``query`` gives to a new file of the partition that has ``values``."""
        folder = "/".join(f"{name}={_NOWHERE if v is None else quote(v, safe='')}" for name, v in values.items())
        name = f"{folder}/part-{uuid.uuid4()}.zstd.parquet"
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        database.execute(
            f"COPY ({query}) TO {literal(str(path))} "
            f"(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE {_ROW_GROUP})"
        )
        return AddAction(name, path.stat().st_size, values, int(time() * 1000), True, statistics)

    def _sync(self, paths: Sequence[Path]) -> None:
        """Have the disk keep ``paths`` and the commit that names them: the log lets go of the same rows afterwards."""
        log = self._path / "_delta_log"
        for path in (*paths, max(log.glob("*.json"))):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for folder in {log, *(path.parent for path in paths), *(path.parent.parent for path in paths), self._path}:
            sync_folder(folder)


def literal(text: str) -> str:
    """``text`` as SQL."""
    return "'" + text.replace("'", "''") + "'"


def _time(microseconds: int) -> str:
    found = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=microseconds)
    return found.isoformat(timespec="microseconds") + "Z"


def _files(table: DeltaTable) -> Iterator[File]:
    columns: dict[str, Any] = {
        name: table_column.to_pylist()
        for name, table_column in _named_columns(Rows.from_arrow(table.get_add_actions(flatten=True)))
    }
    paths = columns["path"]
    models = columns.get("partition.model") or [None] * len(paths)
    for place, path in enumerate(paths):
        yield File(
            unquote(path),
            columns["partition.day"][place],
            models[place] or "",
            columns["size_bytes"][place],
            columns["num_records"][place] or 0,
            _statistics(columns, place),
        )


def _statistics(columns: Mapping[str, Any], place: int) -> str:
    """A file's statistics, as they were."""
    found: dict[str, Any] = {"numRecords": columns["num_records"][place]}
    for name, end in (("minValues", "min.received"), ("maxValues", "max.received")):
        value = columns.get(end, [None] * (place + 1))[place]
        if value is not None:
            found[name] = {"received": value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat() + "Z"}
    return msgspec.json.encode(found).decode()


def _named_columns(rows: Rows) -> Iterator[tuple[str, Any]]:
    for name in rows.column_names:
        yield name, rows.column(name)
