"""`flywheel.columns`: every field of a record is a column, with its values."""

import datetime
from typing import Any

import msgspec
import numpy as np

from flywheel.columns import FEEDBACK_COLUMNS, RECORD_COLUMNS, rows_to_batch
from flywheel.record import VERSION, Content, Feedback, Record, Sampling, Timing, Uncertainty
from tests.flywheel.log.driving import record

PARTS = {"sampling": Sampling, "timing": Timing, "uncertainty": Uncertainty, "content": Content}


def rows(*records: Record | Feedback) -> list[dict[str, Any]]:
    columns = FEEDBACK_COLUMNS if isinstance(records[0], Feedback) else RECORD_COLUMNS
    batch = rows_to_batch(records, columns)
    values = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    return [{name: column[place] for name, column in values.items()} for place in range(len(records))]


def test_every_field_has_a_column() -> None:
    fields = {*Record.__struct_fields__, "day", "content_mode"} - set(PARTS)
    fields |= {name for part in PARTS.values() for name in part.__struct_fields__} - {"mode"}
    assert fields == {column.name for column in RECORD_COLUMNS}
    assert {*Feedback.__struct_fields__, "day"} == {column.name for column in FEEDBACK_COLUMNS}


def test_a_full_record_and_an_empty_one() -> None:
    vector = np.arange(64, dtype="<f2")
    full = record(
        0,
        sticky_hash=0.5,
        input_tokens=7,
        stream=True,
        finish_reasons=("stop", "length"),
        sampling=Sampling(temperature=0.5, seed=3, stop_sequences=("a", "é")),
        timing=Timing(0.1, 0.2, 0.3, 0.4, 0.5, [1, 2]),
        uncertainty=Uncertainty(0.1, low_margin=0.2),
        content=Content("full", '{"x": "é"}'.encode(), b'["y"]', b"\x01", b"\x02", b"\x03"),
        embedding=vector.tobytes(),
        tags={"a": "b"},
    )
    first, second = rows(full, Record(VERSION, "req_1", full.received))
    assert first["day"] == datetime.date(2023, 7, 22)
    assert first["received"] == datetime.datetime(2023, 7, 22, 4, 26, 40, tzinfo=datetime.UTC)
    assert (first["sticky_hash"], first["input_tokens"], first["stream"]) == (0.5, 7, True)
    assert (first["finish_reasons"], first["stop_sequences"], first["gaps"]) == (["stop", "length"], ["a", "é"], [1, 2])
    assert (first["temperature"], first["seed"], first["first_token"], first["low_margin"]) == (0.5, 3, 0.3, 0.2)
    assert (first["input"], first["output"], first["content_mode"]) == ('{"x": "é"}', '["y"]', "full")
    assert (first["input_hash"], first["output_hash"], first["sealed"]) == (b"\x01", b"\x02", b"\x03")
    assert first["embedding"] == vector.tolist()
    assert msgspec.json.decode(first["tags"]) == {"a": "b"}
    assert second["outcome"] == "aborted"
    assert second["content_mode"] == "none"
    assert (second["finish_reasons"], second["gaps"], second["embedding"]) == ([], [], [])
    assert all(second[name] is None for name in ("sticky_hash", "temperature", "input", "sealed", "tags", "ended"))


def test_bytes_that_are_no_text_cost_no_row() -> None:
    good, bad = rows(record(1, content=Content("full", b"ok")), record(2, content=Content("full", b"\xff\xfe", b"[1]")))
    assert (good["input"], bad["input"], bad["output"]) == ("ok", "\ufffd\ufffd", "[1]")


def test_an_embedding_of_another_size_is_left_out() -> None:
    assert [row["embedding"] for row in rows(record(1, embedding=b"\x00" * 6), record(2))] == [[], []]


def test_feedback() -> None:
    (row,) = rows(Feedback(VERSION, "req_1", 5, 0.5, "bad", "this", "that", "why", "key", "user"))
    assert (row["score"], row["label"], row["correction"], row["preferred"]) == (0.5, "bad", "this", "that")
    assert row["day"] == datetime.date(1970, 1, 1)
