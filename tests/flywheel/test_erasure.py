"""`flywheel.erasure` and `flywheel.maintenance`: what is to go is gone, from the disk too."""

import asyncio
import datetime
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flywheel.compaction import BusyError, alone, compact, records_table
from flywheel.content import keep, keep_feedback
from flywheel.erasure import Retained, erase, open_keys, retain
from flywheel.log import Log
from flywheel.maintenance import maintain
from flywheel.query import connect
from flywheel.record import VERSION, Feedback, Record, Sampling
from flywheel.user_keys import UserKeys, keys_path
from tests.flywheel.log.driving import RECEIVED, append, record
from tests.flywheel.test_compaction import write

SECRET = b'{"messages":[{"role":"user","content":"my secret"}]}'
DAY = 86_400_000_000


def everywhere(folder: Path) -> bytes:
    """All that is on the disk."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def of_user(user: str, number: int, keys: UserKeys | None) -> Record:
    kept = keep("full", SECRET, None, user=user, keys=keys)
    return record(number, user=user, session=f"session-of-{user}", sticky_hash=0.25, content=kept)


def asked(folder: Path) -> list[tuple[str, str | None]]:
    keys = open_keys(folder)
    with connect(folder, None if keys is None else keys.unseal) as database:
        return database.execute('SELECT "user", input FROM records ORDER BY received').fetchall()


@pytest.mark.parametrize("compacted", [False, True])
def test_an_erased_user_is_gone_and_others_are_not(tmp_path: Path, compacted: bool) -> None:
    keys = UserKeys(keys_path(tmp_path))
    opinion = keep_feedback("full", Feedback(VERSION, "req_1", RECEIVED, comment="my opinion", user="ann"), keys)
    write(tmp_path, of_user("ann", 1, keys), of_user("bob", 2, keys), opinion)
    if compacted:
        compact(tmp_path)
    assert asked(tmp_path) == [("ann", SECRET.decode()), ("bob", SECRET.decode())]
    told: list[str] = []
    erase(tmp_path, "ann", told.append)
    assert "can't be read any more" in told[0]
    assert asked(tmp_path) == [("", None), ("bob", SECRET.decode())]
    assert b"ann" not in everywhere(tmp_path)
    with connect(tmp_path, keys.unseal) as database:
        assert database.execute('SELECT "user", comment FROM feedback').fetchall() == [("", None)]
        drawn = database.execute('SELECT "user", sticky_hash FROM records ORDER BY received').fetchall()
        assert drawn == [("", None), ("bob", 0.25)]
    erase(tmp_path, "ann")
    assert len(asked(tmp_path)) == 2


def test_what_is_sealed_is_unreadable_at_once_even_where_it_cannot_be_rewritten(tmp_path: Path) -> None:
    keys = UserKeys(keys_path(tmp_path))

    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        assert await append(log, of_user("ann", 1, keys))
        assert asked(tmp_path) == [("ann", SECRET.decode())]
        erase(tmp_path, "ann")  # the gateway still writes to that segment
        assert asked(tmp_path) == [("ann", None)]
        assert await append(log, Record(VERSION, "req_9", RECEIVED * 2, user="ann"))
        log.close()

    asyncio.run(run())
    maintain(tmp_path)
    assert asked(tmp_path) == [("", None), ("ann", None)]  # who comes back is somebody again
    assert b"session-of-ann" not in everywhere(tmp_path)


def test_what_was_not_sealed_is_removed_as_well(tmp_path: Path) -> None:
    write(tmp_path, of_user("ann", 1, None), of_user("it's", 2, None))
    assert b"my secret" in everywhere(tmp_path)
    compact(tmp_path)
    for user in ("ann", "it's"):
        erase(tmp_path, user)
    assert asked(tmp_path) == [("", None), ("", None)]
    assert b"my secret" not in everywhere(tmp_path)


def opinions(folder: Path) -> list[tuple[str, str, str | None]]:
    keys = open_keys(folder)
    with connect(folder, None if keys is None else keys.unseal) as database:
        return database.execute('SELECT "user", label, comment FROM feedback ORDER BY received').fetchall()


def test_what_others_thought_of_it_goes_as_well(tmp_path: Path) -> None:
    """Whoever said it, before and after: what is said of an answer may quote it."""
    keys = UserKeys(keys_path(tmp_path))

    def opinion(request: int, at: int, user: str = "") -> Feedback:
        said = Feedback(VERSION, f"req_{request}", RECEIVED + at, label="so so", comment="a quotation", user=user)
        return keep_feedback("full", said, keys)

    write(
        tmp_path, of_user("ann", 1, keys), of_user("bob", 2, keys), opinion(1, 1), opinion(2, 2), opinion(1, 3, "bob")
    )
    kept, gone = ("so so", "a quotation"), ("", "", None)
    assert opinions(tmp_path) == [("", *kept), ("", *kept), ("bob", *kept)]
    erase(tmp_path, "ann")
    assert opinions(tmp_path) == [gone, ("", *kept), gone]
    write(tmp_path, opinion(1, RECEIVED), opinion(2, RECEIVED))  # many years later
    maintain(tmp_path)
    assert opinions(tmp_path) == [gone, ("", *kept), gone, gone, ("", *kept)]
    assert b"req_1" not in (tmp_path / "keys.sqlite").read_bytes()


def test_what_was_thought_of_a_request_that_was_erased_on_its_way_goes(tmp_path: Path) -> None:
    keys = UserKeys(keys_path(tmp_path))

    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        assert await append(log, of_user("ann", 1, keys))
        erase(tmp_path, "ann")
        log.close()

    asyncio.run(run())
    maintain(tmp_path)
    write(tmp_path, Feedback(VERSION, "req_1", RECEIVED * 2, comment="a quotation"))
    maintain(tmp_path)
    assert opinions(tmp_path) == [("", "", None)]


@pytest.mark.parametrize("compacted", [False, True])
def test_all_that_a_client_says_of_itself_goes(tmp_path: Path, compacted: bool) -> None:
    said = Record(
        *(VERSION, "req_1", RECEIVED, "invalid"),
        user="ann",
        session="the secret session",
        error_message="the secret is no number",
        tags={"the secret name": "the secret value"},
        sampling=Sampling(stop_sequences=("the secret stop",)),
        embedding=b"the secret" * 12 + b"12345678",
    )
    write(tmp_path, said)
    if compacted:
        compact(tmp_path)
    assert b"the secret" in everywhere(tmp_path)
    erase(tmp_path, "ann")
    assert b"the secret" not in everywhere(tmp_path)
    assert asked(tmp_path) == [("", None)]


def test_copies_of_what_compaction_could_not_read_go_too(tmp_path: Path) -> None:
    write(tmp_path, of_user("ann", 1, None), of_user("bob", 2, None))
    (segment,) = (tmp_path / "segments" / "0").glob("*.log")
    of_ann, of_bob = segment.with_suffix(".unreadable"), segment.with_name("7.unreadable")
    of_ann.write_bytes(segment.read_bytes())
    of_bob.write_bytes(b"bob said something")
    erase(tmp_path, "ann")
    assert not of_ann.exists() and of_bob.exists()
    today = datetime.datetime.now(datetime.UTC).date()
    retain(tmp_path, today, 1, None)
    assert of_bob.exists()
    retain(tmp_path, today + datetime.timedelta(days=3), 1, None)
    assert not of_bob.exists()


def test_an_erasure_waits_for_others_at_work(tmp_path: Path) -> None:
    keys = UserKeys(keys_path(tmp_path))
    write(tmp_path, of_user("ann", 1, keys))
    told: list[str] = []
    with ThreadPoolExecutor(1) as thread:
        with alone(tmp_path):
            with pytest.raises(BusyError):
                erase(tmp_path, "ann", patience=0.1)
            erasing = thread.submit(erase, tmp_path, "ann", told.append)
            while not any("waiting" in one for one in told):
                time.sleep(0.01)
            assert asked(tmp_path) == [("ann", None)]  # nobody can read it meanwhile
        erasing.result()
    assert asked(tmp_path) == [("", None)]


def test_the_log_is_for_its_owner(tmp_path: Path) -> None:
    write(tmp_path / "log", record(1))
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o700
    keys = UserKeys(keys_path(tmp_path / "other"))
    keys.close()
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o700


def days(folder: Path, count: int) -> None:
    write(folder, *(Record(VERSION, f"req_{day}", (20_000 + day) * DAY) for day in range(count)))
    compact(folder)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def test_days_go_for_their_age(tmp_path: Path) -> None:
    days(tmp_path, 5)
    today = datetime.date(1970, 1, 1) + datetime.timedelta(days=20_004)
    assert retain(tmp_path, today, 4, None) == Retained(0, 0, 0)
    assert retain(tmp_path, today, 2, None) == Retained(2, 0, 2)
    assert len(asked(tmp_path)) == 3
    assert len(list((tmp_path / "table").rglob("*.parquet"))) == 3


def test_days_go_for_their_size(tmp_path: Path) -> None:
    days(tmp_path, 5)
    whole = size(tmp_path)
    today = datetime.date(2100, 1, 1)
    assert retain(tmp_path, today, None, whole) == Retained(0, 0, 0)
    assert retain(tmp_path, today, None, whole // 2).too_large == 3
    assert size(tmp_path) <= whole // 2
    assert [file.day for file in records_table(tmp_path).files()] == [
        datetime.date(1970, 1, 1) + datetime.timedelta(days=20_003 + one) for one in range(2)
    ] or len(records_table(tmp_path).files()) == 2
    assert retain(tmp_path, today, None, 0).too_large == 2
    assert size(tmp_path) == 0


def test_maintenance_does_it_all(tmp_path: Path) -> None:
    merged = 0
    for number in range(9):
        write(tmp_path, record(number))
        done = maintain(tmp_path)
        assert done.compacted.records == 1
        merged += done.merged
    assert merged == 8
    assert len(records_table(tmp_path).files()) == 2
    assert len(asked(tmp_path)) == 9
    assert maintain(tmp_path, days=30).retained.too_old == 1
    assert asked(tmp_path) == []
