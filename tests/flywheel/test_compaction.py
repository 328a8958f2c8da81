"""`flywheel.compaction`: each record is in the table once, whatever was interrupted when."""

import asyncio
import datetime
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from flywheel.columns import RECORD_COLUMNS
from flywheel.compaction import BusyError, Compacted, alone, compact, feedback_table, records_table, waiting
from flywheel.log import Log
from flywheel.log.folder import closed_path, open_path, segments, writer_folders
from flywheel.log.frame import Kind, Salt
from flywheel.log.reading import all_segments, anything_closed
from flywheel.query import connect
from flywheel.record import VERSION, Content, Feedback, Record, Sampling
from flywheel.table import Table
from tests.flywheel.log.driving import append, begin, record, with_text

LATER = datetime.date(2100, 1, 1)


def write(folder: Path, *items: Record | Feedback, segment_bytes: int = 64 << 20) -> None:
    """Log ``items``, and close the log."""

    async def run() -> None:
        log = Log(folder, segment_bytes=segment_bytes)
        log.start()
        for item in items:
            if isinstance(item, Record):
                assert await append(log, item)
            else:
                log.feedback(item)
        log.close()

    asyncio.run(run())


def read(table: Table, what: str = "request_id") -> list[Any]:
    """A column of a table, as anybody would read it, in order."""
    found = table.open()
    if found is None or not found.file_uris():
        return []
    types = "{'day': DATE, 'model': VARCHAR}" if "model=" in found.file_uris()[0] else "{'day': DATE}"
    rows = duckdb.execute(
        f"SELECT {what} FROM read_parquet(?, hive_partitioning = true, hive_types = {types}) ORDER BY received",
        [found.file_uris()],
    ).fetchall()
    return [row[0] for row in rows]


def names(*numbers: int) -> list[str]:
    return [f"req_{number}" for number in numbers]


def test_records_and_feedback_go_to_their_tables(tmp_path: Path) -> None:
    write(tmp_path, record(1), Feedback(VERSION, "req_1", 7, 0.5, "good"), record(2))
    assert compact(tmp_path)[:3] == (1, 2, 1)
    assert read(records_table(tmp_path)) == names(1, 2)
    assert read(feedback_table(tmp_path), "label") == ["good"]
    assert compact(tmp_path) == Compacted()


def test_a_chunk_is_a_commit_and_segments_go_with_it(tmp_path: Path) -> None:
    write(tmp_path, *(with_text(number, 100) for number in range(20)), segment_bytes=500)
    count = len(all_segments(tmp_path))
    assert count > 3
    assert anything_closed(tmp_path)
    told: list[Compacted] = []
    assert compact(tmp_path, chunk_bytes=600, progress=told.append).records == 20
    assert len(told) > 1
    assert [one.records for one in told] == sorted(one.records for one in told)
    assert read(records_table(tmp_path)) == names(*range(20))
    assert [segment.number for segment in all_segments(tmp_path)] == [count]  # the newest stays, for its number
    assert not anything_closed(tmp_path)


def test_numbers_go_on_after_compaction(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, record(number))
        assert compact(tmp_path).records == 1
    assert read(records_table(tmp_path)) == names(0, 1, 2, 3)


def test_segments_that_outlived_their_commit_are_not_taken_twice(tmp_path: Path) -> None:
    """The process was killed between the commit and the deletion."""
    write(tmp_path, *map(record, range(6)), segment_bytes=300)
    shutil.copytree(tmp_path / "segments", tmp_path / "before")
    compact(tmp_path)
    shutil.rmtree(tmp_path / "segments")
    (tmp_path / "before").rename(tmp_path / "segments")
    assert compact(tmp_path).records == 0
    assert read(records_table(tmp_path)) == names(*range(6))
    assert len(all_segments(tmp_path)) == 1


@pytest.mark.parametrize("table", ["table", "feedback"])
def test_a_commit_that_fails_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    write(tmp_path, record(1), Feedback(VERSION, "req_1", 7, 0.5, "good"))
    commit = DeltaTable.create_write_transaction

    def fail(self: DeltaTable, *args: Any, **more: Any) -> None:
        if Path(self.table_uri.removeprefix("file://")).name == table:
            raise OSError(errno.ENOSPC, "No space left on device")
        commit(self, *args, **more)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", fail)
    with pytest.raises(OSError, match="No space"):
        compact(tmp_path)
    monkeypatch.undo()
    compact(tmp_path)
    assert read(records_table(tmp_path)) == names(1)
    assert read(feedback_table(tmp_path), "label") == ["good"]
    assert records_table(tmp_path).vacuum() == (1 if table == "table" else 0)  # what the failed one left


def test_whoever_compacted_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even without the lock, on a file system that has none: the second commit of the same segments is refused."""
    write(tmp_path, record(1))
    opened = Table.open

    def behind(self: Table) -> DeltaTable | None:
        found = opened(self)
        if found is not None and found.version() > 0:
            found.load_as_version(0)
        return found

    shutil.copytree(tmp_path / "segments", tmp_path / "before")
    compact(tmp_path)
    shutil.rmtree(tmp_path / "segments")
    (tmp_path / "before").rename(tmp_path / "segments")
    monkeypatch.setattr(Table, "open", behind)
    with pytest.raises(Exception, match=r"[Cc]oncurrent"):
        compact(tmp_path)
    monkeypatch.undo()
    assert read(records_table(tmp_path)) == names(1)


def test_the_same_segments_are_not_added_again(tmp_path: Path) -> None:
    """Whoever was slower, and has no lock, sees before the commit that somebody else has added them."""
    table = records_table(tmp_path)
    with duckdb.connect() as database:
        table.add([], {"one": 2, "another": 5}, database)
        with pytest.raises(CommitFailedError, match="another process"):
            table.add([], {"one": 3, "another": 5}, database)
    assert table.done(["one", "another", "a third"]) == {"one": 2, "another": 5, "a third": 0}


def test_feedback_that_is_in_its_table_already_stays_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two commits; then more came, of one writer of two."""
    for number in range(2):
        folder = tmp_path / f"{number}"
        write(folder, record(number), Feedback(VERSION, f"req_{number}", 7 + number, 0.5, f"of {number}"))
    (tmp_path / "1/segments/0").rename(tmp_path / "0/segments/1")
    log = tmp_path / "0"
    commit = DeltaTable.create_write_transaction

    def fail(self: DeltaTable, *args: Any, **more: Any) -> None:
        if Path(self.table_uri.removeprefix("file://")).name == "table":
            raise OSError(errno.EIO, "killed")
        commit(self, *args, **more)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", fail)
    with pytest.raises(OSError, match="killed"):
        compact(log)
    monkeypatch.undo()
    write(log, record(2), Feedback(VERSION, "req_2", 9, 0.5, "of 2"))
    assert compact(log)[:3] == (3, 3, 1)
    assert read(feedback_table(log), "label") == ["of 0", "of 1", "of 2"]
    assert sorted(read(records_table(log))) == names(0, 1, 2)


def test_one_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(BusyError, match="another process"):
        compact(tmp_path)
    compact(tmp_path)


def test_what_is_written_now_waits_and_what_a_dead_process_left_does_not(tmp_path: Path) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        begin(log, record(1, outcome="aborted"))
        assert await append(log, record(2))
        assert compact(tmp_path).records == 0
        log.close()
        closed_path(writer_folders(tmp_path)[0], 1).rename(open_path(writer_folders(tmp_path)[0], 1))

    asyncio.run(run())
    assert compact(tmp_path).records == 2
    assert read(records_table(tmp_path), "outcome") == ["aborted", "ok"]


def test_what_follows_an_open_segment_waits(tmp_path: Path) -> None:
    """A segment that could not be closed: the table counts in order, and would take it for done."""

    async def run() -> None:
        log = Log(tmp_path, segment_bytes=1)
        log.start()
        for number in range(3):
            assert await append(log, record(number))
        (folder,) = writer_folders(tmp_path)
        closed_path(folder, 2).rename(open_path(folder, 2))
        assert [segment.number for segment in waiting(tmp_path)] == [1]
        assert compact(tmp_path).records == 1
        log.close()

    asyncio.run(run())
    assert compact(tmp_path).records == 2
    assert read(records_table(tmp_path)) == names(0, 1, 2)


def test_a_segment_without_records_is_done_too(tmp_path: Path) -> None:
    write(tmp_path)
    assert compact(tmp_path)[:2] == (1, 0)
    assert waiting(tmp_path) == []


MODELS = ("chat", "a/b c%é=1", "", "..", "it's")


def test_every_day_and_model_has_a_partition(tmp_path: Path) -> None:
    day = 86_400_000_000
    items = [
        Record(VERSION, f"req_{number}_{model}", (20_000 + number) * day, model=model)
        for number in range(2)
        for model in MODELS
    ]
    write(tmp_path, *items)
    assert compact(tmp_path).records == 10
    files = records_table(tmp_path).files()
    assert sorted((str(file.day), file.model, file.rows) for file in files) == sorted(
        (day, model, 1) for day in ("2024-10-04", "2024-10-05") for model in MODELS
    )
    assert sorted(read(records_table(tmp_path), "coalesce(model, '')")) == sorted([*MODELS, *MODELS])
    table = DeltaTable(str(tmp_path / "table"))  # what anybody else opens
    assert table.count() == 10


@pytest.mark.parametrize("model", ["é" * 100, "x" * 250, "__HIVE_DEFAULT_PARTITION__", "~"])
def test_a_model_may_be_called_what_no_folder_can(tmp_path: Path, model: str) -> None:
    for number in range(3):
        write(tmp_path, record(number, model=model), record(number + 10, model=""))
        compact(tmp_path)
    table = records_table(tmp_path)
    for files in (6, 2):
        assert sorted(file.model for file in table.files()) == [""] * (files // 2) + [model] * (files // 2)
        with connect(tmp_path) as database:
            found = database.execute("SELECT model, count(*) FROM records GROUP BY model ORDER BY model").fetchall()
        assert found == [("", 3), (model, 3)]
        with duckdb.connect() as database:
            table.merge_small_files(LATER, database)


def test_a_clock_that_goes_back_over_midnight(tmp_path: Path) -> None:
    midnight = 20_001 * 86_400_000_000
    write(tmp_path, *(Record(VERSION, f"req_{at}", midnight + at, model="chat") for at in (5, -5, 7, -7, 0)))
    assert compact(tmp_path).records == 5
    day = datetime.date(2024, 10, 4)
    ranges = {
        file.day: [file.rows, *(one.microsecond for one in (file.first, file.last) if one is not None)]
        for file in records_table(tmp_path).files()
    }
    assert ranges == {day: [2, 999_993, 999_995], day + datetime.timedelta(1): [3, 0, 7]}


def test_a_table_of_an_older_version_gets_the_new_columns(tmp_path: Path) -> None:
    old = Table(tmp_path / "table", [column for column in RECORD_COLUMNS if column.name not in ("tags", "embedding")])
    with duckdb.connect() as database:
        old.add([], {"a writer of then": 7}, database)
    write(tmp_path, record(1, tags={"a": "b"}, embedding=bytes(128)))
    assert compact(tmp_path).records == 1
    table = DeltaTable(str(tmp_path / "table"))
    assert {field.name for field in table.schema().fields} == {column.name for column in RECORD_COLUMNS}
    assert table.transaction_version("a writer of then") == 7
    assert read(records_table(tmp_path), "tags") == ['{"a":"b"}']
    with duckdb.connect() as database:
        old.add([], {"a writer of then": 8}, database)  # a gateway that wasn't updated yet


def test_a_version_names_only_files_that_the_disk_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The segments go when the version is there: after a power failure, nobody has what was not on the disk."""
    synced: set[int] = set()
    fsync, commit = os.fsync, DeltaTable.create_write_transaction

    def note(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        fsync(file)

    def check(self: DeltaTable, actions: Any, *args: Any, **more: Any) -> None:
        files = [tmp_path / "table" / action.path for action in actions if isinstance(action, AddAction)]
        assert files
        assert {path.stat().st_ino for one in files for path in (one, one.parent, one.parent.parent)} <= synced
        commit(self, actions, *args, **more)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(DeltaTable, "create_write_transaction", check)
    write(tmp_path, record(1))
    compact(tmp_path)
    (log,) = (tmp_path / "table" / "_delta_log").glob("*1.json")
    assert log.stat().st_ino in synced
    write(tmp_path, record(2))
    compact(tmp_path)
    with duckdb.connect() as database:
        assert records_table(tmp_path).merge_small_files(LATER, database) == 2
        assert records_table(tmp_path).blank("status = 200", {"user": "'x'"}, database) == 1


def test_what_cannot_be_read_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, record(1))
    (folder,) = writer_folders(tmp_path)
    salt = Salt()
    odd = closed_path(folder, 2)
    odd.write_bytes(salt.start() + salt.header(Kind.RECORD, b"odd") + b"odd" + salt.header(99, b"new") + b"new")
    closed_path(folder, 3).write_bytes(b"something else entirely")
    closed_path(folder, 4).write_bytes(b"")
    found = compact(tmp_path)
    assert (found.segments, found.records, found.unreadable) == (4, 1, 2)
    assert sorted(path.stem for path in folder.glob("*.unreadable")) == ["0000000002", "0000000003"]
    assert "can't be read" in caplog.text


def test_a_row_that_cannot_be_costs_no_other(tmp_path: Path) -> None:
    """Nor does it stop compaction for ever, as it would if it were tried again and again."""
    odd = [record(3, sampling=Sampling(seed=2**63)), Record(VERSION, "req_7", 2**60), record(8, model=5)]
    write(tmp_path, *(record(number) for number in (1, 2)), odd[0], *map(record, (4, 5, 6)), *odd[1:], record(9))
    with connect(tmp_path) as database:
        assert database.execute("SELECT count(*) FROM records").fetchall() == [(6,)]
    done = compact(tmp_path)
    assert (done.records, done.unreadable) == (6, 3)
    assert read(records_table(tmp_path)) == names(1, 2, 4, 5, 6, 9)
    (aside,) = (tmp_path / "segments").rglob("*.unreadable")
    assert b"req_7" in aside.read_bytes()
    assert compact(tmp_path) == Compacted()


def test_one_that_is_in_two_segments_is_taken_once(tmp_path: Path) -> None:
    """An error of the device, and the old segment could not be cut."""
    write(tmp_path, record(1), record(2), record(1))
    assert compact(tmp_path).records == 2
    assert read(records_table(tmp_path)) == names(1, 2)


def test_an_id_that_a_client_says_again_is_of_another_request(tmp_path: Path) -> None:
    """After a restart, or to another gateway process: nobody there remembers the first one."""
    first, again = record(1, outcome="aborted"), record(1)
    again.received += 1
    write(tmp_path, first)
    write(tmp_path, again)
    assert compact(tmp_path).records == 2
    assert read(records_table(tmp_path), "outcome") == ["aborted", "ok"]


def test_a_record_can_be_changed_on_its_way(tmp_path: Path) -> None:
    def forget(item: Record | Feedback) -> None:
        if isinstance(item, Record) and item.user == "gone":
            item.content = None

    write(tmp_path, record(1, user="gone", content=Content("full", b"x")), record(2, content=Content("full", b"y")))
    compact(tmp_path, change=forget)
    assert read(records_table(tmp_path), "input") == [None, "y"]


def test_the_tables_log_has_no_pieces_of_texts(tmp_path: Path) -> None:
    write(tmp_path, record(1, user="someone", content=Content("full", b"secret")))
    compact(tmp_path)
    with duckdb.connect() as database:
        records_table(tmp_path).merge_small_files(LATER, database)
    log = "".join(path.read_text() for path in (tmp_path / "table" / "_delta_log").glob("*.json"))
    assert "secret" not in log
    assert "someone" not in log
    assert "2023-07-22T04:26:40" in log


def test_small_files_are_merged_and_vacuumed(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, record(number))
        compact(tmp_path)
    table = records_table(tmp_path)
    assert len(table.files()) == 4
    with duckdb.connect() as database:
        assert table.merge_small_files(table.files()[0].day, database) == 0  # today's are still coming
        assert table.merge_small_files(LATER, database, least=5) == 0
        assert table.merge_small_files(LATER, database) == 4
    assert len(table.files()) == 1
    assert table.vacuum() == 4
    assert len(list((tmp_path / "table").rglob("*.parquet"))) == 1
    assert read(table) == names(0, 1, 2, 3)
    write(tmp_path, record(4))
    assert compact(tmp_path).records == 1
    assert len(read(table)) == 5


def test_rows_and_days_can_be_removed(tmp_path: Path) -> None:
    models = ("chat", MODELS[1], "")
    write(tmp_path, *(record(number, user=f"u{number}", model=models[number]) for number in range(3)))
    compact(tmp_path)
    table = records_table(tmp_path)
    before = {file.path: (file.model, file.rows, file.stats) for file in table.files()}
    with duckdb.connect() as database:
        for user in ("u1", "u2"):
            assert table.blank(f"\"user\" = '{user}'", {"user": "''", "input": "null"}, database) == 1
        assert table.blank("\"user\" = 'u7'", {"user": "''"}, database) == 0
    assert read(table, '"user"') == ["u0", "", ""]
    after = {file.path: (file.model, file.rows, file.stats) for file in table.files()}
    assert sorted(after.values()) == sorted(before.values())
    assert len(after.keys() & before.keys()) == 1
    assert table.vacuum() == 2
    assert read(table, '"user"') == ["u0", "", ""]
    table.delete("day < '2023-07-23'")
    assert read(table) == []
    table.vacuum()
    assert not list((tmp_path / "table").rglob("*.parquet"))
    assert compact(tmp_path).records == 0  # what the table had of the log, it still knows


def test_a_table_that_is_not_there_is_empty(tmp_path: Path) -> None:
    table = records_table(tmp_path)
    assert (table.files(), table.vacuum()) == ([], 0)
    table.delete("true")
    with duckdb.connect() as database:
        assert table.merge_small_files(LATER, database) == 0
        assert table.blank("true", {}, database) == 0
    assert segments(tmp_path) == []
