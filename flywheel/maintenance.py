"""What has to be done to a log again and again, away from the requests? All that ``penstock log compact`` does."""

import datetime
from pathlib import Path
from typing import Final, NamedTuple

from flywheel.compaction import Compacted, alone, compact, feedback_table, records_table
from flywheel.erasure import Retained, forget, open_keys, retain
from flywheel.scratch import connect

_KEEP_VERSIONS: Final = 24 * 7  # hours that a version of the table can be read after files of it were merged
_MANY: Final = 8  # files in a day's partition, before they are merged


class Done(NamedTuple):
    """``merged``: small files that are one with others now."""

    compacted: Compacted
    merged: int
    retained: Retained


def maintain(folder: Path, days: int | None = None, size: int | None = None) -> Done:
    """Compact, merge the small files of days that are over, remove what is too old or too much.

    Args:
        folder: the log's.
        days: how many are kept; None: all.
        size: how many bytes the tables may have; None: any.

    Raises:
        BusyError: another process does the same.
        OSError, duckdb.Error, deltalake.exceptions.DeltaError: it can't be written; it can be tried again.
    """
    keys = open_keys(folder)
    try:
        compacted = compact(folder, change=forget(keys))
    finally:
        if keys is not None:
            keys.close()
    today = datetime.datetime.now(datetime.UTC).date()
    return Done(compacted, _merge(folder, today), retain(folder, today, days, size))


def _merge(folder: Path, today: datetime.date) -> int:
    """Merge what is small in days before ``today``, if there is enough of it."""
    merged = 0
    with alone(folder), connect(folder) as database:
        for table in (records_table(folder), feedback_table(folder)):
            some = table.merge_small_files(today, database, _MANY)
            if some:
                table.vacuum(_KEEP_VERSIONS)
            merged += some
    return merged
