"""How is a user forgotten, and what is too old? Keys go at once, then rows; and files that nobody needs go for good.

An erasure has three steps. The user's key is deleted: what was sealed under it can't be read from now on, in the log,
in the table, beside them, in copies of any. Then the rows are written anew without the user's name and texts, and
without what others thought of them, and the old files are deleted. What is in segments that a gateway still writes to
follows when they are compacted (`forget`): erased users, and what they asked, are remembered for that, by hashes.
"""

import datetime
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Final, NamedTuple, TypeVar

from flywheel.compaction import BusyError, Compacted, Item, alone, compact, feedback_table, records_table
from flywheel.log.beside import forget_before, forget_owner
from flywheel.log.folder import SEGMENTS
from flywheel.record import Feedback, Record
from flywheel.scratch import connect
from flywheel.table import literal
from flywheel.user_keys import UserKeys, keys_path

# What a record has of its user, and what it is set to.
_RECORD_BLANKS: Final = {
    **dict.fromkeys(("user", "session", "error_message"), "''"),
    **dict.fromkeys(("input", "output", "input_hash", "output_hash", "sealed", "embedding", "tags"), "NULL"),
    "sticky_hash": "NULL",  # names that are guessed can be told by it
    "stop_sequences": "[]",
}
_FEEDBACK_BLANKS: Final = {
    **dict.fromkeys(("user", "label"), "''"),
    **dict.fromkeys(("correction", "preferred", "comment", "sealed"), "NULL"),
}
_AGAIN: Final = 0.3  # seconds until it is tried again

T = TypeVar("T")


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

    def is_erased(item: Item) -> bool:
        if keys is None:
            return False
        if isinstance(item, Feedback) and keys.is_erased_request(item.request_id):
            return True
        if not item.user:
            return False
        at = known.get(item.user)
        if at is None:
            at = known[item.user] = keys.erased_at(item.user)
        return item.received <= at

    def change(item: Item) -> None:
        if not is_erased(item):
            return
        item.user = ""
        if isinstance(item, Record):
            if keys is not None:
                keys.erase_requests([item.request_id])
            item.session = item.error_message = ""
            item.content = item.embedding = item.tags = item.sticky_hash = None
            if item.sampling is not None:
                item.sampling.stop_sequences = ()
        else:
            item.label = ""
            item.correction = item.preferred = item.comment = item.sealed = None

    return change


def erase(folder: Path, user: str, progress: Callable[[str], None] | None = None, patience: float = 600.0) -> Compacted:
    """Make unreadable what a user said, then remove it. May be interrupted, and done again.

    Args:
        folder: the log's.
        user: as records have it.
        progress: is told what is being done.
        patience: seconds to wait for another process that is at work on the table.

    Raises:
        BusyError: another process is at work on the table, and doesn't end. The key is gone already.
        OSError, sqlite3.Error, duckdb.Error, deltalake.exceptions.DeltaError: likewise.
    """
    say = progress or (lambda what: None)
    keys = UserKeys(keys_path(folder))
    try:
        had = keys.erase(user)
        say("the key is deleted: what was sealed can't be read any more" if had else "there was no key of this user")
        pairs = forget_owner(folder, keys.owner(user))
        say(f"{pairs:,} pairs of answers that shadows had kept are gone")
        done = _when_free(lambda: compact(folder, change=forget(keys)), patience, say)
        say(f"{done.records:,} records that were waiting are in the table")
        _when_free(lambda: _write_anew(folder, user, keys), patience, say)
    finally:
        keys.close()
    say("the rows are written anew, and the old files are deleted")
    return done


def _when_free(work: Callable[[], T], patience: float, say: Callable[[str], None]) -> T:
    """Do something once nobody else is at work on the table."""
    end = monotonic() + patience
    told = False
    while True:
        try:
            return work()
        except BusyError:
            if monotonic() >= end:
                raise
        if not told:
            say("waiting for another process that is at work on the table")
        told = True
        sleep(_AGAIN)


def _write_anew(folder: Path, user: str, keys: UserKeys) -> None:
    """Remove a user's name and texts from the tables, and what was thought of them."""
    with alone(folder), connect(folder) as database:
        records, feedback = records_table(folder), feedback_table(folder)
        whose = f'"user" = {literal(user)}'
        asked = records.values("request_id", whose, database)
        keys.erase_requests(asked)
        database.execute("CREATE TABLE asked AS SELECT unnest(?::VARCHAR[]) AS request_id", [asked])
        about = f"{whose} OR request_id IN (SELECT request_id FROM asked)"
        feedback.blank(about, _FEEDBACK_BLANKS, database)
        records.blank(whose, _RECORD_BLANKS, database)  # last: who is interrupted finds again what was asked
        for table in (records, feedback):
            table.vacuum()
        for path in _put_aside(folder):
            if user.encode() in path.read_bytes():
                path.unlink()


def _put_aside(folder: Path) -> list[Path]:
    """Copies of segments that compaction could not read all of. The table has the rest."""
    return list((folder / SEGMENTS).glob("*/*.unreadable"))


def retain(folder: Path, today: datetime.date, days: int | None, size: int | None) -> Retained:
    """Remove whole days: those older than ``days``, and the oldest until the table has at most ``size`` bytes.

    Versions of the table from before can't be read afterwards: that is what frees the disk. What lies beside the log
    goes by its age alone: it has a bound of its own.

    Raises:
        BusyError: another process is at work on the table.
        OSError, deltalake.exceptions.DeltaError: it can't be written.
    """
    if days is not None:
        _remove_leftovers(folder, today - datetime.timedelta(days=days))
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


def _remove_leftovers(folder: Path, oldest: datetime.date) -> None:
    moment = datetime.datetime.combine(oldest, datetime.time(), datetime.UTC).timestamp()
    forget_before(folder, moment)
    for path in _put_aside(folder):
        if path.stat().st_mtime < moment:
            path.unlink(missing_ok=True)
