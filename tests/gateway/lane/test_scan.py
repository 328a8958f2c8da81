"""What is read of bodies that pass through."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lane.scan import NO_TALLY, TAIL, Tally, skim, stream_reasons, tally, tally_whole
from gateway.wire.errors import ApiError

USAGE = {
    "prompt_tokens": 180,
    "completion_tokens": 64,
    "total_tokens": 244,
    "prompt_tokens_details": {"cached_tokens": 128},
}


def answer(content: str, **fields: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": USAGE} | fields).encode()


@given(st.text())
def test_usage_is_found_whatever_the_model_wrote(text: str) -> None:
    trap = text + '"usage": {"prompt_tokens": 9, "completion_tokens": 9}, "finish_reason": "trap"'
    found = Tally(180, 128, 64, ("stop",))
    assert tally_whole(answer(trap)) == found
    assert tally(answer(trap)[-TAIL:]) == found
    assert tally_whole(answer(trap + "x" * 100_000)) == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", NO_TALLY),
        (b"no JSON", NO_TALLY),
        (b'{"usage": null, "choices": []}', NO_TALLY),
        (b'{"data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}', Tally(5, 0, 0)),
        (b'{"choices": [{"finish_reason": "length"}]}', Tally(0, 0, 0, ("length",))),
        (b'{"usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": null}}}', Tally(5, 0, 0)),
        (b'{"usage": {"input_tokens": "5", "prompt_tokens": 5, "completion_tokens": 1.5}}', Tally(5, 0, 1)),
        (b'{"usage": {"prompt_tokens": -5, "completion_tokens": 1%b}}' % (b"0" * 400), NO_TALLY),
    ],
)
def test_what_is_missing_or_odd_counts_nothing(body: bytes, found: Tally) -> None:
    assert tally_whole(body) == found


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ({"choices": [{"finish_reason": "length"}, {"finish_reason": None}]}, ("length", "")),
        ({"stop_reason": "end_turn"}, ("stop",)),
        ({"stop_reason": "tool_use"}, ("tool_calls",)),
        ({"status": "completed", "incomplete_details": None}, ("stop",)),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, ("length",)),
    ],
)
def test_every_endpoint_says_why_it_ended_in_words_of_its_own(
    fields: dict[str, object], reasons: tuple[str, ...]
) -> None:
    body = json.dumps({"id": "x", "model": "m"} | fields).encode()
    assert tally_whole(body) == Tally(0, 0, 0, reasons, "x", "m")
    end = b"event: response.completed\ndata: " if fields.get("status") == "completed" else b"data: "
    assert tally(end + body).finish_reasons == reasons[:1]


def test_a_streams_choices_end_one_by_one() -> None:
    ends = [(0, None), (2, None), (1, "stop"), (0, "length"), (0, None)]
    events = [
        b'data: {"choices":[{"index":%d,"finish_reason":%b}]}\n\n' % (at, json.dumps(end).encode()) for at, end in ends
    ]
    assert stream_reasons(b"".join(events) + b'data: {"finish_reason" no JSON\n\n') == ("length", "stop", "")


def test_a_streams_last_events_say_it() -> None:
    end = (
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\ndata: [DONE]\n\n'
    )
    assert tally(end) == Tally(7, 0, 3, ("tool_calls",))


def test_skimming_finds_the_prompt_as_it_was_sent() -> None:
    found = skim(b'{"x": [1, {"model": "no"}], "messages": [ {"a": 1} ], "model": "m", "user": "u", "stream": true}')
    assert (found.model, bytes(found.messages), found.user, found.stream) == ("m", b'[ {"a": 1} ]', "u", True)
    with pytest.raises(ApiError) as refused:
        skim(b'{"messages": []}')
    assert (refused.value.status, refused.value.param) == (400, "model")


@given(st.binary(max_size=200))
def test_no_body_is_too_odd(body: bytes) -> None:
    try:
        skim(body)
    except ApiError as error:
        assert error.status == 400
    tally_whole(body)
