"""Answers of ``/v1/responses``: the events and the whole, both judged by the official client's own types."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai.types.responses import Response as ClientResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.api.form import Answer, Delta, TokenScore, ToolCall
from gateway.api.response_form import ResponseForm
from gateway.text.parts import Content, Part, Reasoning, ToolCallArguments, ToolCallBegin
from gateway.wire import errors
from gateway.wire.chat import TokenLogprob
from gateway.wire.generation import FinishReason, Usage
from gateway.wire.responses_answer import Response

_events: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = Usage.of(prompt=7, completion=5, cached=4, reasoning=2)
PROMPT = Usage.of(prompt=7, completion=0, cached=4)
REASONING: list[Part] = [Reasoning("hm"), Reasoning("m")]
CALLS: list[Part] = [
    ToolCallBegin(0, "add"),
    ToolCallArguments(0, '{"a":'),
    ToolCallArguments(0, "1}"),
    ToolCallBegin(1, "now"),
    ToolCallArguments(1, "{}"),
]


def describe(scores: Sequence[TokenScore]) -> list[TokenLogprob]:
    """Token ids are code points here."""
    return [TokenLogprob(chr(score.id), score.logprob, list(chr(score.id).encode()), []) for score in scores]


def make_form(*, logprobs: bool = False) -> tuple[ResponseForm, list[Response]]:
    kept: list[Response] = []
    under_way = Response(id="resp_1", created_at=1, metadata={}, model="m", temperature=1.0, top_p=1.0)
    return ResponseForm(under_way, keep=kept.append, describe=describe if logprobs else None), kept


def read(stream: bytes) -> list[dict[str, Any]]:
    """The events of ``stream``, each accepted by the client, named as it is typed, and numbered."""
    events = []
    for number, block in enumerate(stream.decode().removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        assert _events.validate_python(event).type == event["type"]
        events.append(event)
    return events


def streamed(
    deltas: Sequence[Delta], *, reason: FinishReason = "stop", logprobs: bool = False
) -> tuple[list[dict[str, Any]], Response]:
    form, kept = make_form(logprobs=logprobs)
    stream = form.begin(PROMPT)
    for delta in deltas:
        stream += form.delta(0, delta)
    stream += form.finish(Answer(0, [], reason=reason))
    assert not kept
    stream += form.end(USAGE)
    (response,) = kept
    return read(stream), response


def each(parts: Sequence[Part]) -> list[Delta]:
    """A delta for each part, and some that show nothing."""
    return [delta for part in parts for delta in (Delta("", [part]), Delta(""))]


def whole(answer: Answer, *, logprobs: bool = False) -> tuple[dict[str, Any], list[Response]]:
    form, kept = make_form(logprobs=logprobs)
    body = json.loads(form.whole([answer], USAGE))
    assert ClientResponse.model_validate(body, strict=True).id == "resp_1"
    return body, kept


def types(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_streamed_message() -> None:
    events, response = streamed(each([Content("Hel"), Content("lo\u2028")]))
    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events[4:6]] == ["Hel", "lo\u2028"]
    assert events[6]["text"] == "Hello\u2028"
    assert len({event["item_id"] for event in events[3:8]} | {events[2]["item"]["id"]}) == 1
    assert events[2]["item"]["content"] == []
    assert events[8]["item"] == events[9]["response"]["output"][0]
    assert (events[0]["response"]["status"], events[0]["response"]["usage"]) == ("in_progress", None)
    assert json.loads(response.body) == events[9]["response"]
    assert events[9]["response"]["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    }


def test_streamed_reasoning_then_a_message_then_calls() -> None:
    events, _ = streamed(each([*REASONING, Content("Well."), *CALLS]), reason="tool_calls")
    assert types(events)[2:-1] == [
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
    ]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2, 3]
    output = events[-1]["response"]["output"]
    assert [event["item"] for event in done] == output
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "hmm"}]
    assert (output[2]["name"], output[2]["arguments"]) == ("add", '{"a":1}')
    assert (output[3]["name"], output[3]["arguments"]) == ("now", "{}")
    assert len({item["id"] for item in output}) == 4
    assert output[2]["call_id"] != output[3]["call_id"]


def test_several_parts_in_one_delta() -> None:
    events, _ = streamed([Delta("", [*REASONING, Content("a"), *CALLS])])
    assert [item["type"] for item in events[-1]["response"]["output"]] == [
        *("reasoning", "message", "function_call", "function_call")
    ]


@pytest.mark.parametrize(
    ("parts", "statuses"),
    [
        ([Content("a")], ["incomplete"]),
        ([*REASONING], ["incomplete"]),
        ([*REASONING, Content("a"), *CALLS], ["completed", "completed", "completed", "incomplete"]),
        ([], ["incomplete"]),
    ],
    ids=["message", "reasoning", "calls", "nothing"],
)
def test_an_answer_that_was_cut(parts: list[Part], statuses: list[str]) -> None:
    events, response = streamed(each(parts), reason="length")
    last = events[-1]["response"]
    assert (events[-1]["type"], last["status"]) == ("response.incomplete", "incomplete")
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["completed_at"] is None
    assert [item.status for item in response.output] == statuses


def test_an_answer_without_anything_is_an_empty_message() -> None:
    events, _ = streamed([Delta("")])
    assert types(events)[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert whole(Answer(0, []))[0]["output"][0]["content"][0]["text"] == ""


def test_a_stream_that_breaks() -> None:
    form, kept = make_form()
    stream = form.begin(PROMPT) + form.delta(0, Delta("", [Content("a")]))
    events = read(stream + form.fault(errors.unavailable("The worker is gone.")))
    assert types(events)[-5:] == ["output_text.done", "content_part.done", "output_item.done", "error", "failed"]
    assert (events[-2]["code"], events[-2]["message"]) == ("unavailable", "The worker is gone.")
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]) == (
        "failed",
        {"code": "server_error", "message": "The worker is gone."},
    )
    assert failed["output"][0]["status"] == "incomplete"
    assert not kept


def test_whole_answers() -> None:
    calls = [ToolCall("add", '{"a":1}'), ToolCall("now", "{}")]
    body, (kept,) = whole(
        Answer(0, [], content="Well.", reasoning="hmm", tool_calls=calls, reason="tool_calls", text="…")
    )
    assert json.loads(kept.body) == body
    assert (body["status"], body["object"]) == ("completed", "response")
    assert [item["type"] for item in body["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["status"] for item in body["output"]] == ["completed"] * 4
    assert (body["output"][2]["name"], body["output"][2]["arguments"]) == ("add", '{"a":1}')


def test_a_whole_answer_that_was_cut() -> None:
    body, _ = whole(Answer(0, [], content="Well.", reasoning="hmm", reason="length", text="Well."))
    assert body["status"] == "incomplete"
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]


def scores(text: str) -> list[TokenScore]:
    return [TokenScore(ord(char), -0.5) for char in text]


def tokens_of(found: Sequence[dict[str, Any]]) -> str:
    return "".join(logprob["token"] for logprob in found)


def test_log_probabilities_belong_to_the_message() -> None:
    deltas = [
        Delta("", [Reasoning("m")], scores("m")),
        Delta("", [], scores("|")),
        Delta("", [Content("a")], scores("a")),
        Delta("", [], scores("b")),
        Delta("", [Content("bc")], scores("c")),
        Delta("", [ToolCallBegin(0, "f")], scores("f")),
        Delta("", [ToolCallArguments(0, "{}")], scores("{}")),
    ]
    events, response = streamed(deltas, logprobs=True)
    assert [tokens_of(event["logprobs"]) for event in events if event["type"] == "response.output_text.delta"] == [
        "a",
        "bc",
    ]
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    assert tokens_of(done["logprobs"]) == "abc"
    assert tokens_of(json.loads(response.body)["output"][1]["content"][0]["logprobs"]) == "abc"


@pytest.mark.parametrize(
    ("text", "content", "found"),
    [
        ("über👋", "über👋", "über👋"),
        ("(hm)\nüber👋", "über👋", "über👋"),
        ("(hm)abc[f]", "abc", "abc"),
        ("a[f]b", "ab", "a[f]b"),
    ],
    ids=["alone", "after reasoning", "in between", "scattered"],
)
def test_log_probabilities_of_a_whole_answer(text: str, content: str, found: str) -> None:
    body, _ = whole(Answer(0, [], text=text, content=content, tokens=scores(text)), logprobs=True)
    (message,) = body["output"]
    assert tokens_of(message["content"][0]["logprobs"]) == found
    body, _ = whole(Answer(0, [], text=text, content=content, tokens=scores(text)))
    assert body["output"][0]["content"][0]["logprobs"] == []
