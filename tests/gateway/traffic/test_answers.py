"""Answers as clients get them: those of this gateway at every endpoint, and those of others."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.traffic.answers import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Answer, Collector, read_answer
from tests.gateway.fake_worker import write_model_folder
from tests.gateway.harness import run, serving

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for m in messages %}{% if m.tool_calls %}<tool_call></tool_call>{% endif %}{{ m.content }}\n{% endfor %}"
    "{# <think> </think> #}"
)
CALLS = "".join(
    f'<tool_call>\n{{"name": "price", "arguments": {{"room": {room}}}}}\n</tool_call>\n' for room in (12, 27)
)
SAID = f"<think>\nOf which room?\n</think>\n\nLet me see, Zoë. {CALLS}"
SCHEMA = {"type": "object", "properties": {"room": {"type": "integer"}}}
FUNCTION = {"name": "price", "parameters": SCHEMA}
MESSAGE = {"messages": [{"role": "user", "content": "x"}]}
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {**MESSAGE, "tools": [{"type": "function", "function": FUNCTION}]},
    RESPONSES: {"input": "x", "tools": [{"type": "function", **FUNCTION}]},
    MESSAGES: {**MESSAGE, "max_tokens": 300, "tools": [{"name": "price", "input_schema": SCHEMA}]},
}


def events(*said: dict[str, Any] | str, named: bool = False) -> bytes:
    """A stream of these events."""
    out = ""
    for event in said:
        name = f"event: {event['type']}\n" if named and isinstance(event, dict) else ""
        out += f"{name}data: {event if isinstance(event, str) else json.dumps(event)}\n\n"
    return out.encode()


@pytest.fixture(scope="module")
def agent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("answers") / "fake", template=TEMPLATE)


@pytest.mark.parametrize(
    ("endpoint", "reason"), [(CHAT, "tool_calls"), (RESPONSES, "completed"), (MESSAGES, "tool_use")]
)
def test_what_this_gateway_answers(agent_folder: Path, endpoint: str, reason: str) -> None:
    async def scenario() -> None:
        async with serving(agent_folder, max_model_len=512) as gateway:
            encode = gateway.model.tokenizer.encode
            gateway.worker.script = lambda submit: encode(SAID, add_special_tokens=False)
            for stream in (False, True):
                found = await gateway.post(endpoint, {"model": "fake", "stream": stream, **ASKED[endpoint]})
                answer = read_answer(endpoint, found.body, streamed=stream)
                assert answer is not None, found.body
                assert answer.text.strip() == "Let me see, Zoë."
                assert answer.calls == (("price", '{"room": 12}'), ("price", '{"room": 27}'))
                assert answer.finish_reason == reason

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_of_several_completions(model_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            asked = {"model": "fake", "prompt": "höher 👋", "n": 2, "max_tokens": 5, "stream": stream}
            found = await gateway.post(COMPLETIONS, asked)
            assert read_answer(COMPLETIONS, found.body, streamed=stream) == Answer("höhe", (), "length")

    run(scenario())


def test_errors_are_no_answers(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for endpoint in (CHAT, COMPLETIONS, RESPONSES, MESSAGES):
                found = await gateway.post(endpoint, {"model": "nobody"})
                assert found.status >= 400
                assert read_answer(endpoint, found.body, streamed=False) is None

    run(scenario())


CHUNKS: list[dict[str, Any] | str] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None, "refusal": None}}]},
    {"choices": [{"index": 1, "delta": {"content": "another"}}]},
    {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]},
    {"choices": [{"index": 0, "delta": {"content": "One\n\n"}}]},
    {"choices": [{"index": 0, "delta": {"content": "data: two"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"name": "b", "arguments": ""}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "a"}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"arguments": '{"x"'}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"arguments": ": 1}"}}]}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    {"choices": [], "usage": {"completion_tokens": 9}},
    "[DONE]",
]


def test_a_stream_with_all_kinds_of_parts() -> None:
    answer = Answer("One\n\ndata: two", (("a", ""), ("b", '{"x": 1}')), "tool_calls")
    stream = events(*CHUNKS)
    assert read_answer(CHAT, stream, streamed=True) == answer
    assert read_answer(CHAT, stream.replace(b"\n", b"\r\n"), streamed=True) == answer
    assert read_answer(CHAT, b": a comment\n\n" + stream.replace(b"\ndata: ", b"\ndata:"), streamed=True) == answer


def test_a_stream_that_was_cut_has_no_finish_reason() -> None:
    stream = events(*CHUNKS)
    whole = read_answer(CHAT, stream, streamed=True)
    assert whole is not None
    for size in range(len(stream) - len(events(*CHUNKS[-3:]))):
        cut = read_answer(CHAT, stream[:size], streamed=True)
        assert cut is not None and not cut.finish_reason and whole.text.startswith(cut.text)


@pytest.mark.parametrize(
    ("endpoint", "last"),
    [
        (CHAT, events({"error": {"message": "it broke"}})),
        (CHAT, b"event: error\n" + events({"error": {"message": "it broke"}})),
        (RESPONSES, events({"type": "error", "message": "it broke"}, named=True)),
        (RESPONSES, events({"type": "response.failed", "response": {"status": "failed"}}, named=True)),
        (MESSAGES, events({"type": "error", "error": {"type": "overloaded_error"}}, named=True)),
    ],
)
def test_a_stream_that_broke_is_no_answer(endpoint: str, last: bytes) -> None:
    begun = {
        CHAT: events(*CHUNKS[:5]),
        RESPONSES: events({"type": "response.output_text.delta", "delta": "One"}, named=True),
        MESSAGES: events(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "One"}}, named=True
        ),
    }[endpoint]
    assert read_answer(endpoint, begun, streamed=True) is not None
    assert read_answer(endpoint, begun + last, streamed=True) is None


def whole_chat(message: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]}).encode()


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ({"content": "yes"}, Answer("yes", (), "stop")),
        ({"content": None, "refusal": "I can't help with that."}, Answer("I can't help with that.", (), "stop")),
        (
            {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "yes"}]},
            Answer("yes", (), "stop"),
        ),
        (
            {"content": "", "function_call": {"name": "price", "arguments": "{}"}},
            Answer("", (("price", "{}"),), "stop"),
        ),
        (
            {"content": "", "tool_calls": [{"type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}]},
            Answer("", (("sql", "SELECT 1"),), "stop"),
        ),
    ],
)
def test_messages_of_others(message: dict[str, Any], answer: Answer) -> None:
    assert read_answer(CHAT, whole_chat(message), streamed=False) == answer


def test_responses_of_others() -> None:
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}], "summary": []},
        {"type": "web_search_call", "status": "completed", "action": {"query": "x"}},
        {"type": "message", "content": [{"type": "output_text", "text": "One "}, {"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "name": "price", "arguments": '{"room":12}'},
        {"type": "custom_tool_call", "name": "sql", "input": "SELECT 1"},
        {"type": "mcp_call", "name": "elsewhere", "arguments": "{}"},
    ]
    response: dict[str, Any] = {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": output,
    }
    answer = Answer("One no", (("price", '{"room":12}'), ("sql", "SELECT 1")), "max_output_tokens")
    assert read_answer(RESPONSES, json.dumps(response).encode(), streamed=False) == answer
    stream = events(
        {"type": "response.created", "response": {"status": "in_progress", "output": []}},
        {"type": "response.output_text.delta", "output_index": 2, "delta": "One "},
        {"type": "response.refusal.delta", "output_index": 2, "delta": "no"},
        {"type": "response.function_call_arguments.delta", "output_index": 3, "delta": '{"room"'},
        {"type": "response.output_item.done", "output_index": 3, "item": output[3]},
        {"type": "response.output_item.done", "output_index": 4, "item": output[4]},
        {"type": "response.incomplete", "response": response},
        named=True,
    )
    assert read_answer(RESPONSES, stream, streamed=True) == answer
    cut = read_answer(RESPONSES, stream[: stream.rindex(b"event:")], streamed=True)
    assert cut == Answer(answer.text, answer.calls, "")
    for status in ("failed", "in_progress", "cancelled"):
        assert read_answer(RESPONSES, json.dumps(response | {"status": status}).encode(), streamed=False) is None


def test_messages_of_anthropic() -> None:
    content: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "server_tool_use", "name": "web_search", "input": {"query": "x"}},
        {"type": "text", "text": "One", "citations": None},
        {"type": "tool_use", "id": "toolu_1", "name": "price", "input": {"room": 12}},
    ]
    message = {"type": "message", "role": "assistant", "content": content, "stop_reason": "tool_use"}
    answer = Answer("One", (("price", '{"room": 12}'),), "tool_use")
    assert read_answer(MESSAGES, json.dumps(message).encode(), streamed=False) == answer
    stream = events(
        {"type": "message_start", "message": {"type": "message", "content": [], "stop_reason": None}},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": content[1] | {"input": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"query"'}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "One"}},
        {"type": "content_block_start", "index": 2, "content_block": content[3] | {"input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ""}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"room": '}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "12}"}},
        {"type": "content_block_start", "index": 3, "content_block": content[3] | {"input": {}}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
        named=True,
    )
    both = Answer("One", (("price", '{"room": 12}'), ("price", "{}")), "tool_use")
    assert read_answer(MESSAGES, stream, streamed=True) == both


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"choices": 3}', b"\xff", b"[" * 100_000, b"{}"])
@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
def test_what_is_none(endpoint: str, body: bytes) -> None:
    assert read_answer(endpoint, body, streamed=False) is None


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
def test_events_that_are_none(endpoint: str) -> None:
    for body in (b"{", b"3", b'{"choices": 3, "type": 3}', b"\xff"):
        assert read_answer(endpoint, b"data: %b\n\n" % body, streamed=True) is None


def test_other_endpoints_answer_nothing_to_read() -> None:
    assert read_answer("/v1/embeddings", b'{"data": []}', streamed=False) is None
    assert read_answer("/v1/embeddings", b"", streamed=True) is None


def test_of_a_long_answer_the_beginning_is_known() -> None:
    collector = Collector(1000)
    whole = Collector()
    for event in CHUNKS[:1] + [CHUNKS[3]] * 50 + CHUNKS[-3:]:
        collector.add(events(event))
        whole.add(events(event))
    answer = whole.answer(CHAT, streamed=True)
    assert answer == Answer("One\n\n" * 50, (), "tool_calls") and not whole.cut
    assert whole.said(CHAT, streamed=True).read() == answer
    assert collector.said(CHAT, streamed=True).size == 1000
    begun = collector.answer(CHAT, streamed=True)
    assert collector.cut and begun is not None
    assert 0 < len(begun.text) < 200 and begun.text == "One\n\n" * (len(begun.text) // 5) and not begun.finish_reason


def test_of_a_long_answer_that_is_no_stream_nothing_is_known() -> None:
    collector = Collector(1000)
    for part in (whole_chat({"content": "x" * 1000})[:500], b"y" * 1000):
        collector.add(part)
    assert collector.answer(CHAT, streamed=False) is None
