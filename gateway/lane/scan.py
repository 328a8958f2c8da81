"""What must be known of a body that passes through? The model and the prompt's beginning; usage and finish reason.

Bodies are skimmed by msgspec into structs of their few fields: everything else is checked for being JSON and skipped (1
KB takes 0.5 µs, 64 KB 15 µs on one core of a Zen 5). Of streams and of long answers only the end is looked at, where
usage and finish reason stand in every server's JSON: what a model wrote has its quotes escaped there, so it can't
pretend to be them.
"""

import contextlib
import re
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from gateway.wire import errors

_NOTHING: Final = msgspec.Raw()


class Skimmed(msgspec.Struct, gc=False):
    """The fields of a request that routing needs; prompts stay JSON as they came."""

    model: str
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    stream: Any = None
    user: Any = None


_Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None


class Asked(Skimmed, gc=False):
    """The same with what has fields of its own in a record, if all of that is of the types that it should be.

    To read both at once takes no longer than to read either.
    """

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Any = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: _Whole = None
    max_tokens: _Whole = None
    max_completion_tokens: _Whole = None
    max_output_tokens: _Whole = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: _Whole = None
    n: _Whole = None
    stop: Any = None
    stop_sequences: Any = None
    stream: bool | None = None


UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What `read_asked` raises where a body can't be read like that."""
read_asked: Final = msgspec.json.Decoder(Asked).decode
_skim: Final = msgspec.json.Decoder(Skimmed).decode


def skim(body: bytes) -> Skimmed:
    """Read what is needed of a request's body; `Asked`, if it can be.

    Raises:
        ApiError: 400, it is no JSON object, has no model, or a model that isn't a string.
    """
    try:
        return read_asked(body)
    except UNREADABLE:
        return _skim_alone(body)


def _skim_alone(body: bytes) -> Skimmed:
    try:
        return _skim(body)
    except msgspec.ValidationError as error:
        raise errors.invalid_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.invalid_json(str(error)) from None
    except RecursionError:
        raise errors.invalid_json("it is nested too deeply") from None


class _Named(msgspec.Struct):
    model: msgspec.Raw


_named: Final = msgspec.json.Decoder(_Named)
_encode: Final = msgspec.json.Encoder().encode


def renamed(body: bytes, model: str) -> bytes:
    """``body``, which `skim` has read, with another name of the model in it and not a byte else changed.

    Of several ``model`` fields the last one counts, for `skim` as for others.
    """
    raw = _named.decode(body).model
    said = bytes(raw)
    if body.count(said) == 1:  # 5 KB take 0.5 µs instead of 10
        return body.replace(said, _encode(model))
    old = np.frombuffer(memoryview(raw), np.uint8)  # looks into the body itself
    start = old.ctypes.data - np.frombuffer(body, np.uint8).ctypes.data
    return b"%b%b%b" % (body[:start], _encode(model), body[start + len(old) :])


class Tally(msgspec.Struct, frozen=True, gc=False):
    """What an answer says of itself; 0, () and "" where it says nothing. Reasons are in OpenAI's words.

    ``id`` and ``model`` are those of whole answers only: a stream has them in its beginning, which isn't looked at.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reasons: tuple[str, ...] = ()
    id: str = ""
    model: str = ""


_Tokens = Annotated[int, msgspec.Meta(ge=0, lt=10**12)]
"""A count that is believed: what is summed up must never fall, or overflow."""


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Tokens | None = None


class _Usage(msgspec.Struct, gc=False):
    """As ``/v1/chat/completions`` says it, ``/v1/responses``, or ``/v1/messages``."""

    prompt_tokens: _Tokens = 0
    input_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0
    output_tokens: _Tokens = 0
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Tokens | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    """``choices`` have a reason each; a message has a ``stop_reason``, and a response a ``status``."""

    id: str = ""
    model: str = ""
    usage: _Usage | None = None
    choices: list[_Choice] = []
    stop_reason: str | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None


NO_TALLY: Final = Tally()
_answers: Final = msgspec.json.Decoder(_Answer)
_SKIMMED: Final = 1 << 16  # bytes; of longer answers (embeddings, say) the end says as much
TAIL: Final = 4096
"""So many bytes of an answer's end are looked at."""

_PROMPT: Final = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})(?!\d)').search
_OUTPUT: Final = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})(?!\d)').search
_CACHED: Final = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)"\s*:\s*(\d{1,12})(?!\d)').search
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,32})"').search
_STOP: Final = re.compile(rb'"stop_reason"\s*:\s*"([a-z_]{1,32})"').search
_INCOMPLETE: Final = re.compile(rb'"incomplete_details"\s*:\s*\{\s*"reason"\s*:\s*"([a-z_]{1,32})"').search
_COMPLETED: Final = b"event: response.completed"
_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "completed": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""What ``/v1/messages`` and ``/v1/responses`` say, in OpenAI's older words."""


def tally_whole(body: bytes) -> Tally:
    """What a whole answer says of usage and finish reason."""
    if len(body) > _SKIMMED:
        return tally(body[-TAIL:])
    try:
        answer = _answers.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return tally(body[-TAIL:])
    usage = answer.usage
    finish = _reasons_of(answer)
    if usage is None:
        return Tally(0, 0, 0, finish, answer.id, answer.model)
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = (details.cached_tokens if details is not None else usage.cache_read_input_tokens) or 0
    return Tally(
        usage.prompt_tokens or usage.input_tokens,
        cached,
        usage.completion_tokens or usage.output_tokens,
        finish,
        answer.id,
        answer.model,
    )


def tally(tail: bytes) -> Tally:
    """What the ``tail`` of an answer, such as the last events of a stream, says of usage and finish reason."""
    place = tail.rfind(b'"usage"')
    finish = _reason_in(tail)
    if place < 0:
        return Tally(0, 0, 0, finish) if finish else NO_TALLY
    prompt, output, cached = _PROMPT(tail, place), _OUTPUT(tail, place), _CACHED(tail, place)
    return Tally(
        int(prompt[1]) if prompt else 0,
        int(cached[1]) if cached else 0,
        int(output[1]) if output else 0,
        finish,
    )


def stream_reasons(events: bytes) -> tuple[str, ...]:
    """Why each choice of a stream has ended, in their order; "" for one that hasn't."""
    found: dict[int, str] = {}
    for line in events.splitlines():
        if line.startswith(b"data:") and b'"finish_reason"' in line:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                for choice in _answers.decode(line[5:]).choices:
                    if choice.finish_reason or choice.index not in found:
                        found[choice.index] = choice.finish_reason or ""
    return tuple(reason for _, reason in sorted(found.items()))


def _reasons_of(answer: _Answer) -> tuple[str, ...]:
    choices = answer.choices
    if len(choices) == 1:  # nearly always; a generator takes half a microsecond
        return (choices[0].finish_reason or "",)
    if choices:
        return tuple(choice.finish_reason or "" for choice in choices)
    reason = answer.stop_reason or (answer.incomplete_details and answer.incomplete_details.reason) or answer.status
    return (_REASONS.get(reason, reason),) if reason else ()


def _reason_in(tail: bytes) -> tuple[str, ...]:
    found = _FINISH(tail) or _STOP(tail) or _INCOMPLETE(tail)
    if found is None:
        return ("stop",) if _COMPLETED in tail else ()
    reason = found[1].decode()
    return (_REASONS.get(reason, reason),)
