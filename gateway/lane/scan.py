"""What must be known of a body that passes through? The model and the prompt's beginning; usage and finish reason.

Bodies are skimmed by msgspec into structs of their few fields: everything else is checked for being JSON and skipped (1
KB takes 0.5 µs, 64 KB 15 µs on one core of a Zen 5). Of streams and of long answers only the end is looked at, where
usage and finish reason stand in every server's JSON: what a model wrote has its quotes escaped there, so it can't
pretend to be them.
"""

import re
from typing import Any, Final

import msgspec
import numpy as np

from gateway.wire import errors

_NOTHING: Final = msgspec.Raw()


class Skimmed(msgspec.Struct):
    """The fields of a request that routing needs; prompts stay JSON as they came."""

    model: str
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    stream: Any = None
    user: Any = None


_decoder: Final = msgspec.json.Decoder(Skimmed)


def skim(body: bytes) -> Skimmed:
    """Read what is needed of a request's body.

    Raises:
        ApiError: 400, it is no JSON object, has no model, or a model that isn't a string.
    """
    try:
        return _decoder.decode(body)
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
    """What an answer says of itself; 0 and "" where it says nothing."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """As ``/v1/chat/completions`` says it, ``/v1/responses``, or ``/v1/messages``."""

    prompt_tokens: int = 0
    input_tokens: int = 0
    completion_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[_Choice] = []


NO_TALLY: Final = Tally()
_answers: Final = msgspec.json.Decoder(_Answer)
_SKIMMED: Final = 1 << 16  # bytes; of longer answers (embeddings, say) the end says as much
TAIL: Final = 4096
"""So many bytes of an answer's end are looked at."""

_PROMPT: Final = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,15})').search
_OUTPUT: Final = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,15})').search
_CACHED: Final = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)"\s*:\s*(\d{1,15})').search
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,32})"').search


def tally_whole(body: bytes) -> Tally:
    """What a whole answer says of usage and finish reason."""
    if len(body) > _SKIMMED:
        return tally(body[-TAIL:])
    try:
        answer = _answers.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return tally(body[-TAIL:])
    usage, choices = answer.usage, answer.choices
    finish = (choices[0].finish_reason or "") if choices else ""
    if usage is None:
        return Tally(0, 0, 0, finish)
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = (details.cached_tokens if details is not None else usage.cache_read_input_tokens) or 0
    return Tally(
        usage.prompt_tokens or usage.input_tokens, cached, usage.completion_tokens or usage.output_tokens, finish
    )


def tally(tail: bytes) -> Tally:
    """What the ``tail`` of an answer, such as the last events of a stream, says of usage and finish reason."""
    place = tail.rfind(b'"usage"')
    reason = _FINISH(tail)
    finish = reason[1].decode() if reason else ""
    if place < 0:
        return Tally(0, 0, 0, finish) if finish else NO_TALLY
    prompt, output, cached = _PROMPT(tail, place), _OUTPUT(tail, place), _CACHED(tail, place)
    return Tally(
        int(prompt[1]) if prompt else 0,
        int(cached[1]) if cached else 0,
        int(output[1]) if output else 0,
        finish,
    )
