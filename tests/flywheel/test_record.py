"""`flywheel.record`: what is written can be read, by older and newer versions as well."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.record import (
    ATTRIBUTES,
    GAP_BOUNDS,
    VERSION,
    Content,
    Feedback,
    Record,
    Sampling,
    Timing,
    Uncertainty,
    count_gap,
    decode_feedback,
    decode_head,
    decode_record,
    encode,
)

texts = st.text(max_size=20)
shares = st.none() | st.floats(allow_nan=False)


@given(
    st.builds(
        Record,
        version=st.just(VERSION),
        request_id=texts,
        received=st.integers(0, 2**62),
        outcome=texts,
        model=texts,
        input_tokens=st.none() | st.integers(0, 10**9),
        sticky_hash=shares,
        finish_reasons=st.lists(texts, max_size=3).map(tuple),
        sampling=st.none() | st.builds(Sampling, temperature=shares, stop_sequences=st.tuples(texts)),
        timing=st.none() | st.builds(Timing, queued=shares, gaps=st.lists(st.integers(0, 1000), max_size=30)),
        uncertainty=st.none() | st.builds(Uncertainty, low_margin=shares),
        content=st.none() | st.builds(Content, mode=texts, input=st.none() | st.binary(), sealed=st.none()),
        embedding=st.none() | st.binary(min_size=128, max_size=128),
        tags=st.none() | st.dictionaries(texts, texts),
    )
)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    body = encode(record)
    assert decode_record(body) == record
    assert decode_head(body) == (record.version, record.request_id, record.received)


def test_feedback_is_read_as_it_was_written() -> None:
    feedback = Feedback(VERSION, "req_1", 5, score=0.5, label="bad", correction="no")
    assert decode_feedback(encode(feedback)) == feedback
    assert decode_head(encode(feedback)).request_id == "req_1"


def test_what_a_later_version_adds_is_skipped() -> None:
    record = Record(7, "req_1", 5, timing=Timing(0.1), sampling=Sampling(0.5), content=Content("full", b"in"))
    values = msgspec.msgpack.decode(encode(record))
    values = [
        [*value, "new", {"newer": [1]}] if name in ("sampling", "timing", "content") else value
        for name, value in zip(Record.__struct_fields__, values, strict=True)
    ]
    assert decode_record(msgspec.msgpack.encode([*values, "new", 7])) == record
    assert decode_head(msgspec.msgpack.encode([*values, "new", 7])) == (7, "req_1", 5)


def test_what_an_earlier_version_lacks_has_its_default() -> None:
    record = decode_record(msgspec.msgpack.encode([0, "req_1", 5, "ok", 200]))
    assert record == Record(0, "req_1", 5, "ok", 200)
    assert decode_record(msgspec.msgpack.encode([0, "req_1", 5])).outcome == "aborted"


def test_places_stay_what_they_are() -> None:
    """A field's place is its name on the disk: whoever changes this list, other than at its end, breaks old logs."""
    assert Record.__struct_fields__[:3] == Feedback.__struct_fields__[:3] == ("version", "request_id", "received")
    assert "/".join(Record.__struct_fields__) == (
        "version/request_id/received/outcome/status/operation_name/endpoint/model/request_model/response_model/variant/"
        "target/worker/adapter/provider_name/trace_id/span_id/response_id/key/user/session/sticky_hash/input_tokens/"
        "cached_tokens/output_tokens/reasoning_tokens/stream/finish_reasons/error_type/error_message/attempts/shadow_of/"
        "sampling/timing/uncertainty/content/embedding/tags"
    )
    assert Content.__struct_fields__ == ("mode", "input", "output", "input_hash", "output_hash", "sealed")


@pytest.mark.parametrize("body", [b"", b"\x93\x01", encode({"version": 1}), encode(["x", "y", "z"])])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_record(body)
    with pytest.raises(msgspec.DecodeError):
        decode_head(body)


def test_every_attribute_is_a_field() -> None:
    fields = {*Record.__struct_fields__, *Sampling.__struct_fields__, *Content.__struct_fields__}
    assert set(ATTRIBUTES) <= fields
    assert set(Sampling.__struct_fields__) <= set(ATTRIBUTES)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_every_gap_is_counted_where_it_belongs(seconds: list[float]) -> None:
    gaps: list[int] = []
    for one in seconds:
        count_gap(gaps, one)
    bounds = (*GAP_BOUNDS, float("inf"))
    assert gaps == [
        sum(below < one <= bound or (place == 0 and one == 0) for one in seconds)
        for place, (below, bound) in enumerate(zip((0.0, *GAP_BOUNDS), bounds, strict=True))
    ]
