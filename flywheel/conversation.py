"""What was said, whichever way it passed through? An answer's bytes as OpenAI's messages.

The gateway logs what it has at hand: messages, or the body or the stream of an upstream that it never read, in the
shape of any of its endpoints. The pieces of a stream are put together here: a name that came in two events is a name
again. What can't be read of a stream is left out, so that one that broke off is what had come of it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

_WHITESPACE: Final = b" \t\r\n"
_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class _Choice(msgspec.Struct, gc=False):
    index: int | None = 0
    delta: dict[str, Any] | None = None
    text: str | None = None


class _Text(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: str | None = None
    role: str | None = None
    refusal: None = None
    reasoning_content: None = None
    tool_calls: None = None


class _TextChoice(msgspec.Struct, gc=False):
    delta: _Text
    index: int = 0


class _TextChunk(msgspec.Struct, gc=False):
    """An event of a chat of nothing but text, as most are: that is read twice as quickly."""

    choices: list[_TextChoice]


class _Chunk(msgspec.Struct):
    """What is read of an event of a chat or a completion."""

    choices: list[_Choice] | None = None


class _Event(_Chunk):
    """What is read of an event of which it isn't known whose it is."""

    type: str | None = None
    index: int = 0
    output_index: int = 0
    delta: Any = None
    content_block: dict[str, Any] | None = None
    item: dict[str, Any] | None = None
    response: msgspec.Raw = msgspec.Raw()


_BEGIN: Final = b"data: "
_BETWEEN: Final = b"\n\ndata: "
_END: Final = b"\n\ndata: [DONE]\n\n"
_PAYLOADS: Final = re.compile(rb"^data: *(\{.*\}) *\r?$", re.MULTILINE)
_text_chunks: Final = msgspec.json.Decoder(list[_TextChunk]).decode
_chunks: Final = msgspec.json.Decoder(list[_Chunk]).decode
_event: Final = msgspec.json.Decoder(_Event).decode
_events: Final = msgspec.json.Decoder(list[_Event]).decode


def messages(output: bytes) -> bytes:
    """The answer as a JSON array of messages, one per choice; as it is where it is nothing that we know.

    Args:
        output: such an array; the body of a chat, a completion, a response or a message; or the events of a stream of
            one of them.
    """
    begin = output.lstrip(_WHITESPACE)[:1]
    if begin == b"[":
        return output
    try:
        if begin == b"{":
            found = _of_body(msgspec.json.decode(output))
        else:
            found = _of_text(output) or _of_stream(_read(output))
    except (*_FAULTS, AttributeError, TypeError, KeyError):
        return output
    return msgspec.json.encode(found) if found else output


def _of_body(body: Any) -> list[Any]:
    if body.get("choices"):
        choices = sorted(body["choices"], key=lambda choice: choice.get("index") or 0)
        return [choice.get("message") or _assistant(choice.get("text")) for choice in choices]
    message = _Message()
    if isinstance(body.get("output"), list):
        for place, item in enumerate(body["output"]):
            message.add_item(place, item)
    elif body.get("type") == "message":
        for place, block in enumerate(body["content"]):
            message.begin_block(place, block)
    return message.made()


def _assistant(text: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _of_text(output: bytes) -> list[Any]:
    """The messages of a stream that is as most are; none where it is another one."""
    if not output.startswith(_BEGIN) or not output.endswith(_END):
        return []
    try:
        chunks = _text_chunks(b"[%b]" % output[len(_BEGIN) : -len(_END)].replace(_BETWEEN, b","))
    except _FAULTS:
        return []
    texts: defaultdict[int, list[str]] = defaultdict(list)
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.delta.role not in (None, "assistant"):
                return []
            pieces = texts[choice.index]
            if choice.delta.content is not None:
                pieces.append(choice.delta.content)
    return [_assistant("".join(pieces) if pieces else None) for _, pieces in sorted(texts.items())]


def _read(output: bytes) -> Sequence[_Chunk]:
    """The events of a stream: in one go, or, where one of them is broken, those that aren't."""
    payloads = _PAYLOADS.findall(output)
    together = b"[%b]" % b",".join(payloads)
    try:
        chunks = _chunks(together)
        return chunks if all(chunk.choices is not None for chunk in chunks) else _events(together)
    except _FAULTS:
        return list(_readable(payloads))


def _readable(payloads: Iterable[bytes]) -> Iterator[_Event]:
    for payload in payloads:
        try:
            yield _event(payload)
        except UnicodeDecodeError:
            with_marks = payload.decode("utf-8", "replace").encode()
            yield from _readable([with_marks])
        except _FAULTS:
            continue


def _of_stream(events: Sequence[_Chunk]) -> list[Any]:
    choices: defaultdict[int, _Growing] = defaultdict(_Growing)
    message = _Message()
    for event in events:
        for choice in event.choices or ():
            choices[choice.index or 0].add(choice.delta or {"content": choice.text})
        if isinstance(event, _Event) and event.type is not None:
            if event.type in _TERMINAL and event.response:
                whole = _of_body(msgspec.json.decode(event.response))
                if whole:
                    return whole
            message.add(event)
    return [growing.made() for _, growing in sorted(choices.items())] or message.made()


class _Growing:
    """A message of a chat or a completion in the making."""

    def __init__(self) -> None:
        self._pieces: defaultdict[str, list[str]] = defaultdict(list)
        self._others: dict[str, Any] = {}
        self._calls: defaultdict[int, dict[str, Any]] = defaultdict(dict)

    def add(self, delta: dict[str, Any]) -> None:
        """What a chunk brings."""
        for name, value in delta.items():
            if isinstance(value, str):
                self._pieces[name].append(value)
            elif value is not None:
                self._add_other(name, value)

    def _add_other(self, name: str, value: Any) -> None:
        if name == "tool_calls":
            for call in value:
                _add_call(self._calls[call.get("index", 0)], call)
        elif name == "function_call":
            _add_function(self._others.setdefault(name, {"name": "", "arguments": ""}), value)
        elif name == "content" and isinstance(value, list):
            self._pieces[name] += _texts(value)
        else:
            self._others[name] = value

    def made(self) -> dict[str, Any]:
        """The message."""
        role = next((role for role in self._pieces.pop("role", ()) if role), "assistant")
        texts = {name: "".join(pieces) for name, pieces in self._pieces.items()}
        message: dict[str, Any] = {"role": role, "content": None, **texts, **self._others}
        if self._calls:
            message["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        return message


def _texts(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            yield text


def _add_call(call: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name in ("function", "custom") and value is not None:
            said = "arguments" if name == "function" else "input"
            _add_function(call.setdefault(name, {"name": "", said: ""}), value)
        elif name != "index" and value is not None:
            call[name] = value


def _add_function(function: dict[str, Any], delta: dict[str, Any]) -> None:
    for part, text in delta.items():
        function[part] = function.get(part, "") + (text or "")


class _Message:
    """One answer of ``/v1/responses`` or ``/v1/messages`` in the making."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._begun: dict[int, Any] = {}  # what calls have for input where no piece of it comes

    def add(self, event: _Event) -> None:
        """One event of a stream."""
        kind, delta = event.type, event.delta
        if kind == "content_block_start" and event.content_block is not None:
            self.begin_block(event.index, event.content_block)
        elif kind == "content_block_delta" and isinstance(delta, dict):
            self._text(self._texts, delta.get("text"))
            self._text(self._thoughts, delta.get("thinking"))
            self._argument(event.index, delta.get("partial_json"))
        elif kind == "response.output_item.added" and event.item is not None:
            self._call(event.output_index, event.item)
        elif kind in ("response.output_text.delta", "response.refusal.delta"):
            self._text(self._texts, delta)
        elif kind in ("response.reasoning_text.delta", "response.reasoning_summary_text.delta"):
            self._text(self._thoughts, delta)
        elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
            self._argument(event.output_index, delta)

    def begin_block(self, place: int, block: dict[str, Any]) -> None:
        """A block of a message, whole or its beginning."""
        self._text(self._texts, block.get("text"))
        self._text(self._thoughts, block.get("thinking"))
        if block.get("type") == "tool_use":
            self._calls[place] = _call(block.get("id"), block.get("name"), "")
            self._begun[place] = block.get("input")

    def add_item(self, place: int, item: dict[str, Any]) -> None:
        """A whole item of a response."""
        for part in item.get("content") or ():
            into = self._thoughts if item.get("type") == "reasoning" else self._texts
            self._text(into, part.get("text") or part.get("refusal"))
        for part in item.get("summary") or ():
            self._text(self._thoughts, part.get("text"))
        self._call(place, item)

    def made(self) -> list[Any]:
        """The message, if there is anything of it."""
        for place, value in self._begun.items():
            function = self._calls[place]["function"]
            if not function["arguments"] and value is not None:
                function["arguments"] = msgspec.json.encode(value).decode()
        message = _assistant("".join(self._texts) or None)
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        return [message] if message["content"] is not None or len(message) > 2 else []

    def _call(self, place: int, item: dict[str, Any]) -> None:
        said = item.get("arguments") if item.get("type") == "function_call" else item.get("input")
        if item.get("type") in ("function_call", "custom_tool_call"):
            self._calls[place] = _call(item.get("call_id"), item.get("name"), said or "")

    def _argument(self, place: int, piece: Any) -> None:
        if place in self._calls and isinstance(piece, str):
            self._calls[place]["function"]["arguments"] += piece

    @staticmethod
    def _text(into: list[str], piece: Any) -> None:
        if isinstance(piece, str):
            into.append(piece)


def _call(id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"id": id or "", "type": "function", "function": {"name": name or "", "arguments": arguments}}
