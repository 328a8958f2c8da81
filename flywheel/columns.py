"""What are the table's columns, and how do many records become rows of it?

A record's parts are laid flat, each field under its own name. Arrow arrays are made by arro3, which comes with
deltalake and is a tenth of pyarrow's size.
"""

import datetime
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from arro3.core import Array, DataType, Field, RecordBatch, Schema, list_array

from flywheel.conversation import messages
from flywheel.record import Content, Feedback, Record, Sampling, Timing, Uncertainty

PARTITIONS: Final = ("day", "model")
"""The table's folders: one for each day (UTC) and served model."""

EMBEDDING: Final = 64
_DAY: Final = 86_400_000_000  # microseconds
_TIME: Final = DataType.timestamp("us", tz="UTC")
_TEXT, _BYTES, _NUMBER, _REAL = DataType.utf8(), DataType.binary(), DataType.int64(), DataType.float64()
_TEXTS: Final = DataType.list(Field("element", _TEXT, nullable=True))
_COUNTS: Final = DataType.list(Field("element", DataType.int32(), nullable=True))
_VECTOR: Final = DataType.list(Field("element", DataType.float32(), nullable=True))

Rows = Sequence[Any]


class Column(NamedTuple):
    """``values``: of the rows, or of their part ``of``, as Python objects or already as an array."""

    name: str
    type: DataType
    values: Callable[[Rows], Any]
    of: str = ""


def _day(received: int) -> int:
    return received // _DAY


def _field(name: str, type: DataType, of: str = "") -> Column:
    """A field of the record, or of its part ``of``."""
    get = attrgetter(name)
    return Column(name, type, lambda rows: list(map(get, rows)), of)


def _lists(values: Sequence[Sequence[Any]], type: DataType) -> Array:
    """An array of lists; arro3 makes none of Python's."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(one) for one in values], out=offsets[1:])
    items = chain.from_iterable(values)
    flat = Array(np.fromiter(items, np.int32)) if type == _COUNTS else Array(list(items), type=_TEXT)
    return list_array(Array(offsets), flat, type=type)


def _vectors(rows: Rows) -> Array:
    size = 2 * EMBEDDING
    known = [row.embedding if row.embedding and len(row.embedding) == size else b"" for row in rows]
    offsets = np.zeros(len(known) + 1, np.int32)
    np.cumsum([len(one) // 2 for one in known], out=offsets[1:])
    flat = np.frombuffer(b"".join(known), "<f2").astype(np.float32)
    return list_array(Array(offsets), Array(flat), type=_VECTOR)


def _texts(values: list[bytes | None]) -> Array:
    """Texts of their bytes. All at once takes half of what Python's `decode` takes one by one."""
    found = Array(values, type=_BYTES).cast(_TEXT)
    if found.null_count == values.count(None):
        return found
    # One of them isn't UTF-8.
    return Array([one if one is None else one.decode("utf-8", "replace") for one in values], type=_TEXT)


def _output(content: Content) -> bytes | None:
    return None if content.output is None else messages(content.output)


def _tags(row: Record) -> str | None:
    return None if row.tags is None else msgspec.json.encode(row.tags).decode()


_PARTS: Final = {"sampling": Sampling(), "timing": Timing(), "uncertainty": Uncertainty(), "content": Content()}

RECORD_COLUMNS: Final = (
    Column("day", DataType.date32(), lambda rows: [_day(row.received) for row in rows]),
    _field("model", _TEXT),
    _field("received", _TIME),
    *(_field(name, _TEXT) for name in ("request_id", "outcome")),
    _field("status", _NUMBER),
    *(
        _field(name, _TEXT)
        for name in (
            *("operation_name", "endpoint", "request_model", "response_model", "variant", "target", "worker"),
            *("adapter", "provider_name", "trace_id", "span_id", "response_id", "key", "user", "session"),
        )
    ),
    _field("sticky_hash", _REAL),
    *(_field(name, _NUMBER) for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")),
    _field("stream", DataType.bool()),
    _field("finish_reasons", _TEXTS),
    *(_field(name, _TEXT) for name in ("error_type", "error_message")),
    _field("attempts", _NUMBER),
    _field("shadow_of", _TEXT),
    *(_field(name, _REAL, "sampling") for name in ("temperature", "top_p")),
    *(_field(name, _NUMBER, "sampling") for name in ("top_k", "max_tokens")),
    *(_field(name, _REAL, "sampling") for name in ("frequency_penalty", "presence_penalty")),
    *(_field(name, _NUMBER, "sampling") for name in ("seed", "choice_count")),
    _field("stop_sequences", _TEXTS, "sampling"),
    *(_field(name, _REAL, "timing") for name in ("queued", "placed", "first_token", "last_token", "ended")),
    _field("gaps", _COUNTS, "timing"),
    *(
        _field(name, _REAL, "uncertainty")
        for name in ("mean_entropy", "max_entropy", "min_logprob", "mean_logprob", "low_margin")
    ),
    Column("content_mode", _TEXT, lambda contents: [one.mode for one in contents], "content"),
    Column("input", _TEXT, lambda contents: _texts([one.input for one in contents]), "content"),
    Column("output", _TEXT, lambda contents: _texts([_output(one) for one in contents]), "content"),
    *(_field(name, _BYTES, "content") for name in ("input_hash", "output_hash", "sealed")),
    Column("embedding", _VECTOR, _vectors),
    Column("tags", _TEXT, lambda rows: [_tags(row) for row in rows]),
    _field("version", _NUMBER),
)
"""Of the table of records, in order."""

FEEDBACK_COLUMNS: Final = (
    Column("day", DataType.date32(), lambda rows: [_day(row.received) for row in rows]),
    _field("received", _TIME),
    _field("request_id", _TEXT),
    _field("score", _REAL),
    *(_field(name, _TEXT) for name in ("label", "correction", "preferred", "comment", "key", "user")),
    _field("sealed", _BYTES),
    _field("version", _NUMBER),
)
"""Of the table of feedback, in order."""


def schema(columns: Iterable[Column]) -> Schema:
    """What Arrow calls the columns."""
    return Schema([Field(column.name, column.type, nullable=True) for column in columns])


def rows_to_batch(rows: Sequence[Record | Feedback], columns: Sequence[Column]) -> RecordBatch:
    """``rows`` as columns. Some hundreds at a time are quickest: they stay in the processor's cache."""
    parts: dict[str, Rows] = {"": rows}
    for name in {column.of for column in columns if column.of}:  # once, not for each of a part's columns
        empty = _PARTS[name]
        parts[name] = [getattr(row, name) or empty for row in rows]
    return RecordBatch.from_arrays(
        [_array(column.values(parts[column.of]), column.type) for column in columns], schema=schema(columns)
    )


def day_of(received: int) -> datetime.date:
    """The partition of a record that came ``received`` microseconds after 1970."""
    return datetime.date.fromordinal(datetime.date(1970, 1, 1).toordinal() + _day(received))


def _array(values: Any, type: DataType) -> Array:
    if isinstance(values, Array):
        return values
    if type == _TIME:
        return Array(values, type=_NUMBER).cast(_TIME)
    if type == DataType.date32():
        return Array(values, type=DataType.int32()).cast(type)
    if type in (_TEXTS, _COUNTS):
        return _lists(values, type)
    return Array(values, type=type)
