"""How do rows get into a Delta Lake table, once each, and what keeps the table small and quick?

DuckDB writes the Parquet files (zstd, one per partition and commit) and deltalake commits them: deltalake's own writer
takes 24 µs of CPU for a record of 5 kB, DuckDB 10 µs (EPYC, duckdb 2.0, deltalake 1.6). With the files goes, as Delta's
application transaction, how far each writer's segments are in the table: both are there, or neither is.

Only ``received`` has statistics in the table's log: those of a text would be a piece of it, and outlive its erasure.
"""

import datetime
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from time import time
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

import duckdb
import msgspec
from arro3.core import RecordBatch
from arro3.core import Table as Rows
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from flywheel.columns import PARTITIONS, Column, schema
from flywheel.log.folder import sync_folder

_CONFIGURATION: Final = {"delta.dataSkippingStatsColumns": "received", "delta.checkpointInterval": "20"}
_NOWHERE: Final = "__HIVE_DEFAULT_PARTITION__"
_ROW_GROUP: Final = 20_480
_TARGET_BYTES: Final = 256 << 20
_LONGEST_NAME: Final = 200  # bytes of a partition's folder; file systems take 255


class Part(NamedTuple):
    """Rows of one partition. ``first`` and ``last``: the range of their ``received``, in microseconds."""

    day: datetime.date
    model: str
    batches: Sequence[RecordBatch]
    first: int
    last: int


class File(NamedTuple):
    """A file of the table.

    Attributes:
        path: from the table's folder.
        day: its partition's; ``model`` likewise.
        size: in bytes.
        rows: how many it has.
        first: the range of their ``received``, to ``last``; None where nobody knows.
    """

    path: str
    day: datetime.date
    model: str
    size: int
    rows: int
    first: datetime.datetime | None
    last: datetime.datetime | None

    @property
    def stats(self) -> str:
        """What Delta keeps of its statistics, as JSON."""
        return _statistics(self.rows, self.first, self.last)

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
        self._columns = tuple(columns)
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
        if any((table.transaction_version(writer) or 0) >= number for writer, number in done.items()):
            raise CommitFailedError(f"{self._path}: another process has added the same segments meanwhile")
        self._grow(table)
        transactions = [Transaction(writer, number) for writer, number in done.items()]
        self._commit(table, [self._write(part, database) for part in parts], transactions)

    def files(self) -> list[File]:
        """Those of the newest version."""
        table = self.open()
        return [] if table is None else list(_files(table))

    def delete(self, predicate: str) -> None:
        """Remove the rows that an SQL predicate is true of. `vacuum` frees their room."""
        table = self.open()
        if table is not None:
            table.delete(predicate)

    def values(self, column: str, predicate: str, database: duckdb.DuckDBPyConnection) -> list[Any]:
        """What rows that ``predicate`` is true of have in a column."""
        paths = [self._path / file.path for file in self.files()]
        if not paths:
            return []
        found = database.execute(f'SELECT "{column}" FROM {_rows_of(paths)} WHERE {predicate}').fetchall()
        return [value for (value,) in found]

    def blank(self, predicate: str, columns: Mapping[str, str], database: duckdb.DuckDBPyConnection) -> int:
        """Set ``columns`` to SQL expressions where ``predicate`` is true, in files that are written anew; how many.

        Not with deltalake's own update: that notes the predicate in the table's log, and so the name in it.
        """
        table = self.open()
        known = {} if table is None else {str(self._path / file.path): file for file in _files(table)}
        if table is None or not known:
            return 0
        rows = f"{_rows_of(map(Path, known))} WHERE {predicate}"
        affected = database.execute(f"SELECT DISTINCT filename FROM {rows}").fetchall()
        blanked = ", ".join(
            f'CASE WHEN {predicate} THEN {value} ELSE "{name}" END AS "{name}"' for name, value in columns.items()
        )
        actions: list[AddAction | RemoveAction] = []
        for (path,) in affected:
            actions += self._rewrite([known[path]], f"* EXCLUDE (filename) REPLACE ({blanked})", database)
        if actions:
            self._commit(table, actions)
        return len(affected)

    def merge_small_files(self, before: datetime.date, database: duckdb.DuckDBPyConnection, least: int = 2) -> int:
        """Make few large files of many small ones in partitions of days before ``before``; how many are gone.

        Args:
            before: what comes later is left as it is.
            database: the work is done there.
            least: how many small files a partition has to have.
        """
        table = self.open()
        partitions: defaultdict[tuple[datetime.date, str], list[File]] = defaultdict(list)
        for file in () if table is None else _files(table):
            if file.day < before and file.size < _TARGET_BYTES // 2:
                partitions[file.day, file.model].append(file)
        merged = 0
        for files in partitions.values():
            for some in _together(files) if len(files) >= least else ():
                self._commit(self.open() or self._create(), self._rewrite(some, "* EXCLUDE (filename)", database))
                merged += len(some)
        return merged

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

    def _grow(self, table: DeltaTable) -> None:
        """Tell a table that an older version has made of the columns that there are by now."""
        known = {field.name for field in table.schema().fields}
        new = [field for field in DeltaSchema.from_arrow(schema(self._columns)).fields if field.name not in known]
        if new:
            table.alter.add_columns(new)

    def _commit(
        self,
        table: DeltaTable,
        actions: Sequence[AddAction | RemoveAction],
        transactions: list[Transaction] | None = None,
    ) -> None:
        """Have the disk keep new files, then make a version of them, and have it keep that as well.

        In this order: who finds the version after a power failure finds the files, too.
        """
        paths = [self._path / action.path for action in actions if isinstance(action, AddAction)]
        _sync(paths)
        table.create_write_transaction(
            list(actions),
            "append",
            table.schema(),
            self._partitions,
            commit_properties=CommitProperties(app_transactions=transactions),
        )
        _sync([max((self._path / "_delta_log").glob("*.json"))])

    def _write(self, part: Part, database: duckdb.DuckDBPyConnection) -> AddAction:
        """Write one file."""
        values = partition_values(part.day, part.model, self._partitions)
        statistics = _statistics(sum(batch.num_rows for batch in part.batches), _time(part.first), _time(part.last))
        database.register("rows_to_write", Rows.from_batches(part.batches))
        try:
            query = f"SELECT * EXCLUDE ({', '.join(self._partitions)}) FROM rows_to_write"
            return self._copy(query, values, statistics, database)
        finally:
            database.unregister("rows_to_write")

    def _rewrite(
        self, files: Sequence[File], columns: str, database: duckdb.DuckDBPyConnection
    ) -> list[AddAction | RemoveAction]:
        """Write ``columns`` of some files of one partition to a new one, which takes their place."""
        values = files[0].values(self._partitions)
        statistics = _statistics(
            sum(file.rows for file in files),
            min((file.first for file in files if file.first is not None), default=None),
            max((file.last for file in files if file.last is not None), default=None),
        )
        query = f"SELECT {columns} FROM {_rows_of(self._path / file.path for file in files)}"
        now = int(time() * 1000)
        removed = [RemoveAction(file.path, True, now, file.size, values) for file in files]
        return [self._copy(query, values, statistics, database), *removed]

    def _copy(
        self, query: str, values: Mapping[str, str | None], statistics: str, database: duckdb.DuckDBPyConnection
    ) -> AddAction:
        """Write what ``query`` gives to a new file of the partition that has ``values``."""
        folder = "/".join(f"{name}={folder_name(value)}" for name, value in values.items())
        name = f"{folder}/part-{uuid.uuid4()}.zstd.parquet"
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        database.execute(
            f"COPY ({query}) TO {literal(str(path))} "
            f"(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE {_ROW_GROUP})"
        )
        return AddAction(name, path.stat().st_size, values, int(time() * 1000), True, statistics)


def folder_name(value: str | None) -> str:
    """What the folder of a partition is called, behind ``=``: the value, or a hash where it can't have its name."""
    if value is None:
        return _NOWHERE
    name = quote(value, safe="")
    if len(name) > _LONGEST_NAME or value == _NOWHERE:
        return f"~{blake2b(value.encode(), digest_size=16).hexdigest()}"
    return name


def _sync(paths: Sequence[Path]) -> None:
    """Have the disk keep ``paths``, and the names of them and of their folders."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for folder in {folder for path in paths for folder in list(path.parents)[:3]}:
        sync_folder(folder)


def _together(files: Sequence[File]) -> Iterator[list[File]]:
    """Files that are to become one each: neighbours in time, up to `_TARGET_BYTES` of them."""
    some: list[File] = []
    for file in sorted(files, key=lambda file: (str(file.first), file.path)):
        if sum(one.size for one in some) + file.size > _TARGET_BYTES:
            if len(some) > 1:
                yield some
            some = []
        some.append(file)
    if len(some) > 1:
        yield some


def literal(text: str) -> str:
    """``text`` as SQL."""
    return "'" + text.replace("'", "''") + "'"


def _rows_of(paths: Iterable[Path]) -> str:
    """The rows of some files, as SQL; ``filename`` says where each is from."""
    files = ", ".join(literal(str(path)) for path in paths)
    return f"read_parquet([{files}], filename = true, union_by_name = true, hive_partitioning = false)"


def _time(microseconds: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=microseconds)


def _statistics(rows: int, first: datetime.datetime | None, last: datetime.datetime | None) -> str:
    """What Delta knows of a file, as JSON."""
    found: dict[str, Any] = {"numRecords": rows, "nullCount": {"received": 0}}
    for name, value in (("minValues", first), ("maxValues", last)):
        if value is not None:
            text = value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
            found[name] = {"received": f"{text}Z"}
    return msgspec.json.encode(found).decode()


def _files(table: DeltaTable) -> Iterator[File]:
    found = Rows.from_arrow(table.get_add_actions(flatten=True))
    columns: dict[str, Any] = {name: found.column(name).to_pylist() for name in found.column_names}
    nothing = [None] * found.num_rows
    for path, day, model, size, rows, first, last in zip(
        columns["path"],
        columns["partition.day"],
        columns.get("partition.model", nothing),
        columns["size_bytes"],
        columns["num_records"],
        columns.get("min.received", nothing),
        columns.get("max.received", nothing),
        strict=True,
    ):
        yield File(unquote(path), day, model or "", size, rows or 0, first, last)
