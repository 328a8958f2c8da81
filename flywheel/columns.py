"""What are the table's columns, and how do many records become rows of it?

A record's parts are laid flat, each field under its own name. Arrow arrays are made by arro3, which comes with
deltalake and is a tenth of pyarrow's size.
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from arro3.core import Array, DataType, Field, RecordBatch, Schema, list_array
from msgspec.structs import astuple

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

Row = Record | Feedback
Values = Sequence[Any]


class Column(NamedTuple):
    """What is made of one field.

    Attributes:
        of: the part of the record that has the field; empty: the record itself.
        field: its name there; empty: the column's.
        values: what becomes of the field's values: Python objects, or an array already. None: nothing.
    """

    name: str
    type: DataType
    of: str = ""
    field: str = ""
    values: Callable[[Values], Any] | None = None


def _day(received: int) -> int:
    return received // _DAY


def _days(received: Values) -> list[int]:
    day_of(min(received)), day_of(max(received))
    return [_day(one) for one in received]


def _lists(values: Sequence[Sequence[Any]], type: DataType) -> Array:
    """An array of lists; arro3 makes none of Python's."""
    offsets = _offsets(values)
    items = chain.from_iterable(values)
    flat = Array(np.fromiter(items, np.int32, offsets[-1])) if type == _COUNTS else Array(list(items), type=_TEXT)
    return list_array(Array(offsets), flat, type=type)


def _offsets(values: Sequence[Sequence[Any]], size: int = 1) -> npt.NDArray[np.int32]:
    """Where each of ``values`` begins when they lie one behind the other, ``size`` of their items counted as one."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)) // size, out=offsets[1:])
    return offsets


def _vectors(embeddings: Values) -> Array:
    size = 2 * EMBEDDING
    known = [one if one and len(one) == size else b"" for one in embeddings]
    flat = np.frombuffer(b"".join(known), "<f2").astype(np.float32)
    return list_array(Array(_offsets(known, 2)), Array(flat), type=_VECTOR)


def _texts(values: Values) -> Array:
    """Texts of their bytes. All at once takes half of what Python's `decode` takes one by one."""
    found = Array(values, type=_BYTES).cast(_TEXT)
    if found.null_count == values.count(None):
        return found
    # One of them isn't UTF-8.
    return Array([one if one is None else one.decode("utf-8", "replace") for one in values], type=_TEXT)


def _outputs(outputs: Values) -> Array:
    return _texts([None if one is None else messages(one) for one in outputs])


def _tags(tags: Values) -> list[str | None]:
    return [None if one is None else msgspec.json.encode(one).decode() for one in tags]


_PARTS: Final = {"sampling": Sampling(), "timing": Timing(), "uncertainty": Uncertainty(), "content": Content()}

RECORD_COLUMNS: Final = (
    Column("day", DataType.date32(), field="received", values=_days),
    Column("model", _TEXT),
    Column("received", _TIME),
    *(Column(name, _TEXT) for name in ("request_id", "outcome")),
    Column("status", _NUMBER),
    *(
        Column(name, _TEXT)
        for name in (
            *("operation_name", "endpoint", "request_model", "response_model", "variant", "target", "worker"),
            *("adapter", "provider_name", "trace_id", "span_id", "response_id", "key", "user", "session"),
        )
    ),
    Column("sticky_hash", _REAL),
    *(Column(name, _NUMBER) for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")),
    Column("stream", DataType.bool()),
    Column("finish_reasons", _TEXTS),
    *(Column(name, _TEXT) for name in ("error_type", "error_message")),
    Column("attempts", _NUMBER),
    Column("shadow_of", _TEXT),
    *(Column(name, _REAL, "sampling") for name in ("temperature", "top_p")),
    *(Column(name, _NUMBER, "sampling") for name in ("top_k", "max_tokens")),
    *(Column(name, _REAL, "sampling") for name in ("frequency_penalty", "presence_penalty")),
    *(Column(name, _NUMBER, "sampling") for name in ("seed", "choice_count")),
    Column("stop_sequences", _TEXTS, "sampling"),
    *(Column(name, _REAL, "timing") for name in ("queued", "placed", "first_token", "last_token", "ended")),
    Column("gaps", _COUNTS, "timing"),
    *(
        Column(name, _REAL, "uncertainty")
        for name in ("mean_entropy", "max_entropy", "min_logprob", "mean_logprob", "low_margin")
    ),
    Column("content_mode", _TEXT, "content", "mode"),
    Column("input", _TEXT, "content", values=_texts),
    Column("output", _TEXT, "content", values=_outputs),
    *(Column(name, _BYTES, "content") for name in ("input_hash", "output_hash", "sealed")),
    Column("embedding", _VECTOR, values=_vectors),
    Column("tags", _TEXT, values=_tags),
    Column("version", _NUMBER),
)
"""Of the table of records, in order."""

FEEDBACK_COLUMNS: Final = (
    Column("day", DataType.date32(), field="received", values=_days),
    Column("received", _TIME),
    Column("request_id", _TEXT),
    Column("score", _REAL),
    *(Column(name, _TEXT) for name in ("label", "correction", "preferred", "comment", "key", "user")),
    Column("sealed", _BYTES),
    Column("version", _NUMBER),
)
"""Of the table of feedback, in order."""


@cache
def schema(columns: tuple[Column, ...]) -> Schema:
    """What Arrow calls the columns."""
    return Schema([Field(column.name, column.type, nullable=True) for column in columns])


def rows_to_batch(rows: Sequence[Row], columns: tuple[Column, ...]) -> RecordBatch:
    """``rows`` as columns. Some hundreds at a time are quickest: they stay in the processor's cache.

    Raises:
        ValueError, OverflowError, TypeError: a row has a value that its column can't have.
    """
    fields = _by_field(rows)
    return RecordBatch.from_arrays(
        [_array(column, fields[column.of][column.field or column.name]) for column in columns], schema=schema(columns)
    )


def possible_batches(rows: Sequence[Row], columns: tuple[Column, ...]) -> Iterator[tuple[RecordBatch, Sequence[Row]]]:
    """``rows`` as one batch; or, if some have values that their columns can't have, the others, as several."""
    if not rows:
        return
    try:
        yield rows_to_batch(rows, columns), rows
    except (ValueError, OverflowError, TypeError):
        if len(rows) > 1:
            middle = len(rows) // 2
            yield from possible_batches(rows[:middle], columns)
            yield from possible_batches(rows[middle:], columns)


def _by_field(rows: Sequence[Row]) -> dict[str, dict[str, Values]]:
    """The values of each field, of the rows and of their parts.

    Turned around as tuples: to get the 60 fields of each row one by one takes 3 µs a row, this 0.5 µs.
    """
    found = {"": _turned(rows)}
    for name, empty in _PARTS.items():
        if name in found[""]:
            found[name] = _turned([part or empty for part in found[""][name]])
    return found


def _turned(structs: Sequence[msgspec.Struct]) -> dict[str, Values]:
    return dict(zip(structs[0].__struct_fields__, zip(*map(astuple, structs), strict=True), strict=True))


def day_of(received: int) -> datetime.date:
    """The partition of a record that came ``received`` microseconds after 1970.

    Raises:
        ValueError, OverflowError: no calendar has it.
    """
    return datetime.date.fromordinal(datetime.date(1970, 1, 1).toordinal() + _day(received))


def _array(column: Column, values: Values) -> Array:
    made = values if column.values is None else column.values(values)
    if isinstance(made, Array):
        return made
    if column.type == _TIME:
        return Array(made, type=_NUMBER).cast(_TIME)
    if column.type == DataType.date32():
        return Array(made, type=DataType.int32()).cast(column.type)
    if column.type in (_TEXTS, _COUNTS):
        return _lists(made, column.type)
    return Array(made, type=column.type)
