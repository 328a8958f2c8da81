"""How is a user forgotten, and what is too old? Keys go at once, then rows; and files that nobody needs go for good.

An erasure has three steps. The user's key is deleted: what was sealed under it can't be read from now on, in the log,
in the table, in copies of either. Then the rows are written anew without the user's name and texts, and the old files
are deleted. What is in segments that a gateway still writes to follows when they are compacted (`forget`): the erased
users are remembered, by a hash, for that.
"""

import datetime
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import duckdb

from flywheel.compaction import Compacted, Item, alone, compact, feedback_table, records_table
from flywheel.record import Record
from flywheel.table import literal
from flywheel.user_keys import UserKeys, keys_path

# What a record has of its user, and what it is set to.
_RECORD_BLANKS: Final = {
    **dict.fromkeys(("user", "session", "error_message"), "''"),
    **dict.fromkeys(("input", "output", "input_hash", "output_hash", "sealed", "embedding", "tags"), "NULL"),
}
_FEEDBACK_BLANKS: Final = {"user": "''", **dict.fromkeys(("correction", "preferred", "comment", "sealed"), "NULL")}


class Retained(NamedTuple):
    """How many days, or parts of days, were removed for their age and for their size, and the files that went."""

    too_old: int
    too_large: int
    files: int


def open_keys(folder: Path) -> UserKeys | None:
    """A log's keys, if it has any."""
    path = keys_path(folder)
    return UserKeys(path) if path.exists() else None


def forget(keys: UserKeys | None) -> Callable[[Item], None]:
    """What compaction is to do to each record, and to feedback: take out what is of erased users."""
    known: dict[str, int] = {}

    def change(item: Item) -> None:
        if keys is None or not item.user:
            return
        at = known.get(item.user)
        if at is None:
            at = known[item.user] = keys.erased_at(item.user)
        if item.received > at:
            return
        item.user = ""
        if isinstance(item, Record):
            item.session = item.error_message = ""
            item.content = item.embedding = item.tags = None
        else:
            item.correction = item.preferred = item.comment = item.sealed = None

    return change


def erase(folder: Path, user: str, progress: Callable[[str], None] | None = None) -> Compacted:
    """Make unreadable what a user said, then remove it. May be interrupted, and done again.

    Args:
        folder: the log's.
        user: as records have it.
        progress: is told what is being done.

    Raises:
        BusyError: another process is at work on the table. The key is gone already.
        OSError, sqlite3.Error, duckdb.Error, deltalake.exceptions.DeltaError: likewise.
    """
    say = progress or (lambda what: None)
    keys = UserKeys(keys_path(folder))
    try:
        had = keys.erase(user)
        say("the key is deleted: what was sealed can't be read any more" if had else "there was no key of this user")
        done = compact(folder, change=forget(keys))
        say(f"{done.records:,} records that were waiting are in the table")
    finally:
        keys.close()
    with alone(folder), duckdb.connect() as database:
        whose = f'"user" = {literal(user)}'
        for table, blanks in (
            (records_table(folder), _RECORD_BLANKS),
            (feedback_table(folder), _FEEDBACK_BLANKS),
        ):
            table.blank(whose, blanks, database)
            table.vacuum()
    say("the rows are written anew, and the old files are deleted")
    return done


def retain(folder: Path, today: datetime.date, days: int | None, size: int | None) -> Retained:
    """Remove whole days: those older than ``days``, and the oldest until the table has at most ``size`` bytes.

    Versions of the table from before can't be read afterwards: that is what frees the disk.

    Raises:
        BusyError: another process is at work on the table.
        OSError, deltalake.exceptions.DeltaError: it can't be written.
    """
    with alone(folder):
        records, feedback = records_table(folder), feedback_table(folder)
        sizes: defaultdict[datetime.date, int] = defaultdict(int)
        for file in (*records.files(), *feedback.files()):
            sizes[file.day] += file.size
        oldest = datetime.date.min if days is None else today - datetime.timedelta(days=days)
        too_old = [day for day in sizes if day < oldest]
        kept = sorted(day for day in sizes if day >= oldest)
        total = sum(sizes[day] for day in kept)
        too_large = 0
        while size is not None and total > size and too_large < len(kept):
            total -= sizes[kept[too_large]]
            too_large += 1
        if not too_old and not too_large:
            return Retained(0, 0, 0)
        last = kept[too_large - 1] if too_large else max(too_old)
        for table in (records, feedback):
            table.delete(f"day <= DATE '{last.isoformat()}'")
        return Retained(len(too_old), too_large, records.vacuum() + feedback.vacuum())
