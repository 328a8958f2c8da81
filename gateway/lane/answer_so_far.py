"""What must be known of a streamed answer for another upstream to go on with it? The token ids of prompt and answer.

vLLM and Penstock put them into the events of a stream for whoever asks with ``return_token_ids``: the prompt's into the
first one, the answer's into each. They are collected here as the events pass, and taken out again unless the client
asked for them itself. To go on, an upstream gets a completion request for all of them. A Penstock takes the answer's as
such (``answered``), so that limits, seeds, penalties and stop strings go on, too; to others they are a longer prompt,
and what counts tokens is corrected here.

What an upstream has drawn but not shown (the first bytes of a character) is drawn again.
"""

import re
from array import array
from typing import Any, Final

import msgspec

from gateway.fleet.upstream.connection import Fault
from gateway.fleet.upstream.target import Continues
from gateway.wire import sse

_NOTHING: Final = msgspec.Raw()
_DEFAULT_TOKENS: Final = 16  # of a completion that doesn't say how long it may be, as at OpenAI
_ASKING: Final = b'{"return_token_ids":true,'
_NEUTRAL: Final = frozenset((b"", b"null", b"false", b"[]", b"{}", b"0", b'"none"', b'{"type":"text"}'))
_CHAT_ONLY: Final = frozenset(
    ("messages", "max_completion_tokens", "add_generation_prompt", "continue_final_message", "add_special_tokens",
     "chat_template", "chat_template_kwargs", "documents", "include_reasoning", "reasoning_effort", "tools",
     "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format", "logprobs", "top_logprobs",
     "n", "modalities", "verbosity", "echo", "truncate_prompt_tokens", "prediction", "audio", "web_search_options")
)  # fmt: skip
_ONE: Final = frozenset((b"", b"null", b"1"))
_INCLUDE_USAGE: Final = re.compile(rb'"include_usage"\s*:\s*true').search
_IDS: Final = re.compile(rb',\s*"(?:prompt_)?token_ids"\s*:\s*(?:\[[\d,\s]*\]|null)')
_NAMES: Final = (b',"', b',"prompt_')
# An event that says nothing but the next tokens, as most do. In what a model wrote, quotes are escaped.
_PLAIN: Final = re.compile(
    rb'data: \{[^[]*"choices":\[\{"index":0,(?:"delta":\{"content"|"text"):("[^"\\]*(?:\\.[^"\\]*)*")\}?'
    rb'((?:,"[a-z_]+":null)*),"token_ids":\[(\d+(?:,\d+)*)\](?:,"[a-z_]+":null)*\}\](?:,"[a-z_]+":null)*\}\n\n'
).fullmatch
_SEVERAL: Final = "it asks for several answers"
_TOOLS: Final = "it has tools"
_SHAPE: Final = "its answer must have a shape"
_SCORES: Final = "it asks for log-probabilities"
_NO_IDS: Final = "the upstream gave no token ids"


class _Asked(msgspec.Struct):
    """The fields of a request on which it depends whether its answer can go on elsewhere; JSON as it came."""

    n: msgspec.Raw = _NOTHING
    best_of: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING
    functions: msgspec.Raw = _NOTHING
    response_format: msgspec.Raw = _NOTHING
    structured_outputs: msgspec.Raw = _NOTHING
    guided_json: msgspec.Raw = _NOTHING
    guided_regex: msgspec.Raw = _NOTHING
    guided_choice: msgspec.Raw = _NOTHING
    guided_grammar: msgspec.Raw = _NOTHING
    logprobs: msgspec.Raw = _NOTHING
    prompt_logprobs: msgspec.Raw = _NOTHING
    echo: msgspec.Raw = _NOTHING
    use_beam_search: msgspec.Raw = _NOTHING
    kv_transfer_params: msgspec.Raw = _NOTHING
    stop: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    return_token_ids: msgspec.Raw = _NOTHING
    stream_options: msgspec.Raw = _NOTHING


_WHY_NOT: Final = {
    "tools": _TOOLS, "functions": _TOOLS, "response_format": _SHAPE, "structured_outputs": _SHAPE,
    "guided_json": _SHAPE, "guided_regex": _SHAPE, "guided_choice": _SHAPE, "guided_grammar": _SHAPE,
    "logprobs": _SCORES, "prompt_logprobs": _SCORES, "echo": "it wants its prompt back",
    "use_beam_search": "it asks for a beam search", "kv_transfer_params": "its KV cache is somewhere else",
}  # fmt: skip
_asked: Final = msgspec.json.Decoder(_Asked)
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_numbers: Final = msgspec.json.Decoder(list[int])
_encode: Final = msgspec.json.Encoder().encode


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = msgspec.UNSET
    token_ids: list[int] | None = None
    prompt_token_ids: msgspec.Raw = _NOTHING


class _Event(msgspec.Struct):
    id: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: Any = msgspec.UNSET
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    prompt_token_ids: msgspec.Raw = _NOTHING
    error: Any = None


_events: Final = msgspec.json.Decoder(_Event)


class AnswerSoFar:
    """One streamed answer. ``why_not`` says why nobody could go on with it; "" as long as somebody could.

    ``finish`` is why it ended, where it did; ``complete``: its last event has come. ``fault`` is what an upstream said
    in place of an event. ``kind`` is that of the upstream that gives it, ``moves`` counts those that went on with it.

    Args:
        endpoint: where it was asked for.
        body: the request.
    """

    __slots__ = (
        "_aligned", "_asking", "_body", "_chat", "_extra", "_head", "_ids", "_kept", "_prompt", "_prompt_size",
        "_shows_ids", "_stops", "_unsaid", "_usage", "complete", "fault", "finish", "kind", "moves", "why_not",
    )  # fmt: skip

    def __init__(self, endpoint: str, body: bytes) -> None:
        self._body = body
        self._chat = endpoint == "/v1/chat/completions"
        asked = _asked.decode(body) if self._chat or endpoint == "/v1/completions" else None
        self.why_not = "its endpoint has no token ids" if asked is None else _why_not(asked)
        self._shows_ids = asked is not None and bytes(asked.return_token_ids) == b"true"
        self._usage = asked is not None and _INCLUDE_USAGE(bytes(asked.stream_options)) is not None
        self._stops = asked is not None and bytes(asked.stop) not in _NEUTRAL
        self._asking = b""
        self._head: dict[str, Any] = {}
        self._extra: dict[str, Any] = {}
        self._prompt = b""  # JSON, as it came
        self._prompt_size = 0
        self._ids = array("q")
        self._aligned = 0  # so many of the ids have all of their text shown
        self._kept = 0  # so many are another upstream's
        self._unsaid = False  # whether the client doesn't know of the `finish`
        self.kind: Continues = ""
        self.moves = 0
        self.finish = ""
        self.complete = False
        self.fault: Fault | None = None

    # Asking

    def asking(self, kind: Continues) -> bytes:
        """The body of the request for an upstream of this ``kind``: that of the client, or with token ids asked for."""
        if not self.follows(kind) or self._shows_ids:
            return self._body
        if not self._asking:
            self._asking = _ASKING + self._body[self._body.index(b"{") + 1 :]
        return self._asking

    def follows(self, kind: Continues) -> bool:
        """Whether the answer of an upstream of this ``kind`` is worth remembering."""
        return not self.why_not_with(kind)

    def why_not_with(self, kind: Continues) -> str:
        """Why nobody could go on with it when it comes from an upstream of this ``kind``; "" if somebody could."""
        if not kind:
            return "the upstream isn't known to give token ids"
        if self._stops and kind != "penstock" and not self.why_not:
            return "it has stop strings, for which the upstream keeps text back"
        return self.why_not

    def forget(self, why_not: str) -> None:
        """Nobody could go on with it, after all."""
        self.why_not = why_not
        self._prompt = b""
        del self._ids[:]

    # Remembering

    def begin(self, kind: Continues) -> None:
        """An upstream of this ``kind`` begins with the answer."""
        self.kind, self.complete, self.fault = kind, False, None
        self._asking = b""  # as long as the request itself

    def take(self, data: bytes) -> bytes:
        """Whole events came: what of them the client should see. With a `fault`, what came before it."""
        if not self.why_not:
            plain = _PLAIN(data) if self._head else None
            if plain is not None:
                return self._take_plain(data, plain)
            data = self._read(data)
        return data if self._shows_ids else _without_ids(data)

    def _take_plain(self, data: bytes, plain: "re.Match[bytes]") -> bytes:
        text, nulls, ids = plain.groups()
        self._ids.extend(map(int, ids.split(b",")))
        if text != b'""':
            self._aligned = len(self._ids)
        if self._shows_ids:
            return data
        if b"token_ids" in nulls:
            return _without_ids(data)
        begin, end = plain.span(3)
        return data[: begin - len(b',"token_ids":[')] + data[end + 1 :]

    def _read(self, data: bytes) -> bytes:
        place = begin = 0
        for line in data.splitlines(True):
            if line.startswith(b"data:"):
                if not self._note(line[5:].strip()):
                    return data[:begin]
                if self.why_not:
                    return data
            place += len(line)
            if not line.strip():
                begin = place
        return data

    def _note(self, payload: bytes) -> bool:
        """Remember what an event says; False: it says that there is a `fault`."""
        event = self._decode(payload)
        if event is None:
            return self.fault is None
        if not self._head:
            self._head = {"id": event.id, "created": event.created, "model": event.model}
            if event.system_fingerprint is not msgspec.UNSET:
                self._extra["system_fingerprint"] = event.system_fingerprint
        if event.usage is not None and not event.choices:
            self._usage = False
        self._note_prompt(event.prompt_token_ids)
        for choice in event.choices:
            self._note_prompt(choice.prompt_token_ids)
            delta = choice.delta
            if choice.index or (delta is not None and _is_taken_apart(delta)):
                self.forget(_SEVERAL if choice.index else "the upstream takes its answer apart")
                return True
            self._note_tokens(choice, (choice.text if delta is None else delta.content) or "")
            if self.why_not:
                return True
        return True

    def _decode(self, payload: bytes) -> _Event | None:
        """The event, unless it is the last, of another kind, or none."""
        if payload == b"[DONE]":
            self.complete = True
            return None
        try:
            event = _events.decode(payload)
        except msgspec.ValidationError:
            self.forget("the upstream's events are of another kind")
            return None
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fault = Fault("garbage", "an event is no JSON")
            return None
        if event.error is not None:
            said = event.error.get("message") if isinstance(event.error, dict) else event.error
            self.fault = Fault("garbage", f"it gave up in the middle of its answer: {str(said)[:200]}")
            return None
        return event

    def _note_prompt(self, ids: msgspec.Raw) -> None:
        if not self._prompt and len(ids) > 4:  # not null
            self._prompt = bytes(ids)

    def _note_tokens(self, choice: _Choice, text: str) -> None:
        ids = choice.token_ids
        if ids:
            self._ids.extend(ids)
        elif text and ids is None:
            self.forget(_NO_IDS)
            return
        if text:
            self._aligned = len(self._ids)
        if choice.finish_reason:
            self.finish = choice.finish_reason

    # Going on

    @property
    def over(self) -> bool:
        """Whether there is nothing left of the answer but to say so (`ending`)."""
        if not self.finish and not self.why_not and 0 < self._limit(_fields.decode(self._body)) <= len(self._ids):
            self.finish, self._unsaid = "length", True
        return bool(self.finish)

    def rest(self, max_len: int) -> bytes:
        """The request for what is left of the answer, for an upstream whose contexts hold ``max_len`` tokens.

        Raises:
            ValueError: nobody could go on with it.
        """
        if self.why_not or not self._prompt:
            raise ValueError(self.why_not or _NO_IDS)
        if not self._shows_ids:
            del self._ids[self._aligned :]
        elif self._aligned < len(self._ids) and self.kind != "penstock":
            raise ValueError("the client has ids whose text was still to come")
        prompt = _numbers.decode(self._prompt)
        self._prompt_size, self._kept = len(prompt), len(self._ids)
        fields = _fields.decode(self._body)
        limit = self._limit(fields) or max_len - len(prompt)
        if limit <= self._kept:
            raise ValueError("nobody knows how long it may be" if not max_len else "its context is full")
        return self._request(fields, prompt, limit)

    def _limit(self, fields: dict[str, msgspec.Raw]) -> int:
        """How many tokens the answer may have; 0: as many as there is room for."""
        named = (fields.get("max_completion_tokens"), fields.get("max_tokens")) if self._chat else (
            fields.get("max_tokens"),
        )  # fmt: skip
        for said in named:
            if said is not None and said != b"null":
                return int(bytes(said))
        return 0 if self._chat else _DEFAULT_TOKENS

    def _request(self, fields: dict[str, msgspec.Raw], prompt: list[int], limit: int) -> bytes:
        left: dict[str, Any] = {name: value for name, value in fields.items() if name not in _CHAT_ONLY}
        left |= {"prompt": [*prompt, *self._ids], "return_token_ids": True, "max_tokens": limit}
        if self.kind == "penstock":
            left["answered"] = self._kept
        else:
            left["max_tokens"] = limit - self._kept
            if (least := fields.get("min_tokens")) is not None and least != b"null":
                left["min_tokens"] = max(0, int(bytes(least)) - self._kept)
        return _encode(left)

    def rejoin(self, data: bytes) -> bytes:
        """Whole events of the rest came: as what they go on with would have said them."""
        out = b""
        for line in data.splitlines():
            if not line.startswith(b"data:"):
                continue
            event = self._decode(line[5:].strip())
            if self.complete:
                return out + sse.DONE
            if event is None:
                return out
            for choice in event.choices:
                text = choice.text or ""
                self._note_tokens(choice, text)
                if text or choice.finish_reason or (self._shows_ids and choice.token_ids):
                    out += self._event([self._choice(choice, text)], event.usage)
            if not event.choices and event.usage is not None:
                out += self._event([], event.usage)
        return out

    def ending(self) -> bytes:
        """What is left to say of an answer all of whose tokens are there."""
        prompt, output = self._prompt_size or self._count(), len(self._ids)
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        last = {"index": 0, **said, "logprobs": None, "finish_reason": self.finish}
        out = self._event([last], None) if self._unsaid else b""
        return out + (self._event([], usage, counted=True) if self._usage else b"") + sse.DONE

    def _count(self) -> int:
        return len(_numbers.decode(self._prompt)) if self._prompt else 0

    def _choice(self, choice: _Choice, text: str) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self._chat else {"text": text}
        made = {"index": 0, **said, "logprobs": None, "finish_reason": choice.finish_reason}
        if choice.stop_reason is not msgspec.UNSET:
            made["stop_reason"] = choice.stop_reason
        if self._shows_ids:
            made["token_ids"] = choice.token_ids or []
        return made

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None, *, counted: bool = False) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        event: dict[str, Any] = {**self._head, "object": kind, "choices": choices, **self._extra}
        if usage is not None:
            event["usage"] = usage if counted or self.kind == "penstock" else self._counted(usage)
        return sse.event(_encode(event))

    def _counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """What the rest cost, as what the whole cost."""
        output = int(usage.get("completion_tokens") or 0) + self._kept
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            details = details | {"cached_tokens": min(details["cached_tokens"], self._prompt_size)}
        return usage | {
            "prompt_tokens": self._prompt_size,
            "completion_tokens": output,
            "total_tokens": self._prompt_size + output,
            **({} if details is None else {"prompt_tokens_details": details}),
        }


def _why_not(asked: _Asked) -> str:
    """Why nobody could go on with the answer to such a request; "" if somebody could."""
    if bytes(asked.n) not in _ONE or bytes(asked.best_of) not in _ONE:
        return _SEVERAL
    for name, why_not in _WHY_NOT.items():
        said = bytes(getattr(asked, name))
        if said and said.translate(None, b" \t\r\n") not in _NEUTRAL:
            return why_not
    prompt = bytes(asked.prompt)[:64]
    if prompt[:1] == b"[" and not prompt[1:].lstrip()[:1].isdigit():
        return _SEVERAL
    return ""


def _without_ids(data: bytes) -> bytes:
    """Events without their token ids: `_IDS`, but faster where there are many and no blanks between them."""
    parts: list[bytes] = []
    place = 0
    while (at := data.find(b'token_ids":', place)) >= 0:
        begin, end = data.rfind(b",", place, at), at + 11
        end = data.find(b"]", end) + 1 if data[end : end + 1] == b"[" else end + 4 * data.startswith(b"null", end)
        if data[begin:at] not in _NAMES or end <= at + 11:
            return b"".join(parts) + _IDS.sub(b"", data[place:])
        parts.append(data[place:begin])
        place = end
    return b"".join([*parts, data[place:]]) if parts else data


def _is_taken_apart(delta: _Delta) -> bool:
    return bool(delta.reasoning or delta.reasoning_content or delta.tool_calls or delta.function_call or delta.refusal)
