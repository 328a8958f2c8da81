"""`flywheel.query`, `export` and `summary`: a request is found before and after compaction, once, and leaves whole."""

import asyncio
import datetime
import io
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from flywheel import export as export_module
from flywheel.columns import RECORD_COLUMNS
from flywheel.compaction import compact
from flywheel.export import Format, export
from flywheel.log import Log
from flywheel.log.reading import all_segments
from flywheel.query import NoLogError, connect, frames_after
from flywheel.record import VERSION, Content, Feedback, Record, Timing, Uncertainty
from flywheel.summary import summarize
from tests.flywheel.log.driving import RECEIVED, append, record
from tests.flywheel.test_compaction import write

ASKED = b'{"model":"chat","messages":[{"role":"user","content":"Hi"}],"tools":[{"type":"function"}]}'
STREAM = b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\ndata: [DONE]\n\n'
SAID = '[{"role":"assistant","content":"Hello"}]'


def ask(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with connect(folder) as database:
        return database.execute(sql).fetchall()


def test_a_request_is_found_before_during_and_after_compaction(tmp_path: Path) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        for number in range(1, 4):
            assert await append(log, record(number, content=Content("full", ASKED, STREAM)))
            if number == 2:
                log.close()
                compact(tmp_path)
                log = Log(tmp_path)
                log.start()
            found = ask(tmp_path, "SELECT request_id, model, output FROM records ORDER BY received")
            assert found == [(f"req_{one}", "chat", SAID) for one in range(1, number + 1)]
        log.close()

    asyncio.run(run())
    assert ask(tmp_path, "SELECT count(*) FROM records") == [(3,)]


def test_feedback_joins_whichever_of_the_two_is_compacted(tmp_path: Path) -> None:
    for number in range(1, 4):
        write(tmp_path, record(number), record(number + 10))
        if number == 1:
            compact(tmp_path)
        write(tmp_path, Feedback(VERSION, f"req_{number}", RECEIVED, float(number), "seen"))
        if number == 2:
            compact(tmp_path)
    found = ask(tmp_path, "SELECT request_id, score, label, status FROM judged ORDER BY score")
    assert found == [(f"req_{number}", float(number), "seen", 200) for number in (1, 2, 3)]
    assert ask(tmp_path, "SELECT count(*) FROM records") == [(6,)]


def test_the_columns_are_those_of_the_table(tmp_path: Path) -> None:
    write(tmp_path, record(1, model="", timing=Timing(first_token=0.5, last_token=1.5), output_tokens=11))
    for _ in range(2):
        names = [row[0] for row in ask(tmp_path, "DESCRIBE records")]
        assert names == [*(column.name for column in RECORD_COLUMNS), "ttft", "itl"]
        assert ask(tmp_path, "SELECT model, ttft, round(itl, 6) FROM records") == [("", 0.5, 0.1)]
        compact(tmp_path)


def test_of_an_answer_that_came_whole_the_pauses_are_unknown(tmp_path: Path) -> None:
    write(tmp_path, record(1, timing=Timing(first_token=0.5, last_token=0.5), output_tokens=11))
    assert ask(tmp_path, "SELECT ttft, itl FROM records") == [(0.5, None)]


def test_what_is_sealed_is_opened_by_who_can(tmp_path: Path) -> None:
    write(
        tmp_path, record(1, user="ann", content=Content("full", sealed=b"x")), record(2, content=Content("full", b"in"))
    )
    assert ask(tmp_path, "SELECT input, output FROM records ORDER BY received") == [(None, None), ("in", None)]

    def unseal(user: str, sealed: bytes) -> dict[str, bytes]:
        return {"input": f"{user} {sealed.decode()}".encode(), "output": STREAM}

    with connect(tmp_path, unseal) as database:
        found = database.execute("SELECT input, output FROM records ORDER BY received").fetchall()
    assert found == [("ann x", SAID), ("in", None)]


def test_a_folder_without_a_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoLogError, match="no request log"):
        connect(tmp_path)


def test_a_log_without_records_is_empty(tmp_path: Path) -> None:
    write(tmp_path)
    assert ask(tmp_path, "SELECT * FROM judged") == []
    compact(tmp_path)
    assert ask(tmp_path, "SELECT * FROM records") == []


def test_a_log_is_followed_frame_by_frame(tmp_path: Path) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        place = 0
        for number in range(3):
            assert await append(log, record(number))
            (segment,) = all_segments(tmp_path)
            records, place = frames_after(segment, place)
            assert [one.request_id for one in records] == [f"req_{number}"]
            assert frames_after(segment, place) == ([], place)
        log.close()
        assert frames_after(segment, place) == ([], place)

    asyncio.run(run())


def exported(folder: Path, format: Format, where: str = "true") -> tuple[list[Any], tuple[int, int]]:
    out = io.BytesIO()
    with connect(folder) as database:
        done = export(database, format, out, where)
    return [msgspec.json.decode(line) for line in out.getvalue().splitlines()], done


def test_an_export_has_every_row(tmp_path: Path) -> None:
    write(tmp_path, *(record(number, key=f"k{number % 2}", content=Content("full", ASKED)) for number in range(1200)))
    compact(tmp_path)
    write(
        tmp_path,
        record(1200, embedding=bytes(128), finish_reasons=("stop",), content=Content("hash", None, None, b"\x01")),
    )
    lines, done = exported(tmp_path, "jsonl")
    assert done == (1201, 0)
    assert [line["request_id"] for line in lines] == [f"req_{number}" for number in range(1201)]
    assert (lines[-1]["finish_reasons"], lines[-1]["input_hash"], len(lines[-1]["embedding"])) == (["stop"], "AQ==", 64)
    lines, done = exported(tmp_path, "jsonl", "key = 'k1' AND received < TIMESTAMPTZ '2023-07-22 04:26:40.0005+00'")
    assert done == (250, 0)
    told: list[tuple[int, int]] = []
    with connect(tmp_path) as database:
        file = tmp_path / "out's.parquet"
        assert export(database, "parquet", file, progress=lambda *counts: told.append(counts)) == (1201, 0)
        assert told.pop() == (1201, 1201)
        told.clear()
        assert duckdb.read_parquet(str(file)).count("*").fetchall() == [(1201,)]
        export(database, "jsonl", io.BytesIO(), progress=lambda *counts: told.append(counts))
    assert told == [(500, 1201), (1000, 1201), (1201, 1201)]


def test_an_export_in_many_ranges_of_time_has_every_row_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is at least a second; one of them has more records than is meant to be."""
    monkeypatch.setattr(export_module, "_TOGETHER", 7000)
    items = [
        record(n * 250_000 if n < 200 else 30_000_000 + n, content=Content("full", b'{"a":1}')) for n in range(260)
    ]
    write(tmp_path, *reversed(items[::2]))
    compact(tmp_path)
    write(tmp_path, *items[1::2])
    names = [item.request_id for item in sorted(items, key=lambda item: item.received)]
    lines, done = exported(tmp_path, "jsonl")
    assert done == (260, 0)
    assert [line["request_id"] for line in lines] == names
    half, done = exported(tmp_path, "jsonl", "received < TIMESTAMPTZ '2023-07-22 04:27:00+00' OR status = 7 -- so far")
    assert [line["request_id"] for line in half] == names[: len(half)]
    assert 0 < len(half) < 260
    file = tmp_path / "out.parquet"
    with connect(tmp_path) as database:
        assert len(export_module._windows(database, "true")) > 20
        assert export_module.export(database, "parquet", file) == (260, 0)
        assert export_module.export(database, "parquet", tmp_path / "none.parquet", "false") == (0, 0)
    assert [row[0] for row in duckdb.read_parquet(str(file)).project("request_id").fetchall()] == names
    assert not list(tmp_path.glob(".penstock-export-*"))


def test_conversations_are_exported_with_their_corrections(tmp_path: Path) -> None:
    write(
        tmp_path,
        record(1, content=Content("full", ASKED, STREAM)),
        record(2, content=Content("full", ASKED, STREAM)),
        record(3, content=Content("full", b'{"prompt": "x"}', STREAM)),
        record(4),
        record(5, content=Content("full", ASKED)),
        record(6, content=Content("full", b"broken", STREAM)),
        Feedback(VERSION, "req_2", RECEIVED, correction="first"),
        Feedback(VERSION, "req_2", RECEIVED + 5, correction="Good day"),
        Feedback(VERSION, "req_2", RECEIVED + 9, score=1.0),
    )
    lines, done = exported(tmp_path, "openai-chat")
    assert done == (2, 4)
    asked = {"role": "user", "content": "Hi"}
    tools = [{"type": "function"}]
    assert lines == [
        {"messages": [asked, {"role": "assistant", "content": said}], "tools": tools} for said in ("Hello", "Good day")
    ]


def test_the_summary_has_what_matters(tmp_path: Path) -> None:
    timing = Timing(first_token=0.25, last_token=1.25, ended=1.3)
    good = {"variant": "stable", "worker": "w1", "timing": timing, "input_tokens": 100, "cached_tokens": 25}
    write(
        tmp_path,
        *(record(n, **good, output_tokens=11, uncertainty=Uncertainty(mean_logprob=-0.5)) for n in range(3)),
        record(3, variant="stable", worker="w1", outcome="failed"),
        Record(VERSION, "req_old", RECEIVED - 10**10, "ok", model="old"),
        Record(VERSION, "req_none", RECEIVED, "refused"),
    )
    since = datetime.datetime.fromtimestamp(RECEIVED / 1e6, datetime.UTC)
    with connect(tmp_path) as database:
        table = summarize(database, since, 10.0)
    rows = list(zip(*(column._cells for column in table.columns), strict=True))
    assert rows == [
        ("(none)", "", "", "1", "0.10", "0.0%", "100.0%", "- / -", "- / -", "0", "0", "", "", ""),
        (
            *("chat", "stable", "w1", "4", "0.40", "25.0%", "0.0%", "250.0 ms / 250.0 ms", "100.0 ms / 100.0 ms"),
            *("300", "33", "25.0%", "0.50", ""),
        ),
    ]
