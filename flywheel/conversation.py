"""What was said, whichever way it passed through? An answer's bytes as OpenAI's messages.

The gateway logs what it has at hand: messages, or the body or the stream of an upstream that it never read. The
stream's pieces are put together here, away from the requests.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

_WHITESPACE: Final = b" \t\r\n"


def messages(output: bytes) -> bytes:
    """The answer as a JSON array of messages, one per choice; as it is where it is nothing that we know.

    Args:
        output: such an array; an OpenAI body, of a chat or a completion; or the events of a stream of either.
    """
    begin = output.lstrip(_WHITESPACE)[:1]
    if begin == b"[":
        return output
    try:
        found = _of_body(msgspec.json.decode(output)) if begin == b"{" else _of_stream(output)
    except (msgspec.DecodeError, AttributeError, TypeError, KeyError):
        return output
    return msgspec.json.encode(found) if found else output


def _of_body(body: Any) -> list[Any]:
    choices = sorted(body.get("choices") or [], key=lambda choice: choice.get("index", 0))
    return [choice.get("message") or _assistant(choice.get("text")) for choice in choices]


def _assistant(text: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _of_stream(output: bytes) -> list[Any]:
    choices: dict[int, dict[str, Any]] = {}
    for event in _events(output):
        for choice in event.get("choices") or []:
            message = choices.setdefault(choice.get("index", 0), _assistant(None))
            _add(message, choice.get("delta") or {"content": choice.get("text")})
    for message in choices.values():
        if "tool_calls" in message:
            message["tool_calls"] = [call for _, call in sorted(message["tool_calls"].items())]
    return [message for _, message in sorted(choices.items())]


def _events(output: bytes) -> Iterator[Any]:
    for line in output.splitlines():
        name, _, value = line.partition(b":")
        value = value.strip()
        if name == b"data" and value[:1] == b"{":
            yield msgspec.json.decode(value)


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add what a chunk brings to its choice's message."""
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value or []:
                _add_call(message.setdefault("tool_calls", {}).setdefault(call.get("index", 0), {}), call)
        elif name == "role":
            message["role"] = value or "assistant"
        elif isinstance(value, str):
            message[name] = (message.get(name) or "") + value
        elif value is not None:
            message[name] = value


def _add_call(call: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "function":
            function = call.setdefault("function", {"name": "", "arguments": ""})
            for part, text in value.items():
                function[part] = function.get(part, "") + (text or "")
        elif name != "index" and value is not None:
            call[name] = value
