"""What must be known of a body that passes through? The model and the prompt's beginning; usage and finish reason.

A request is skimmed by msgspec into a struct of its few fields: everything else is checked for being JSON and skipped
(1 KB takes 0.5 µs, 64 KB 15 µs on one core of a Zen 5). Of an answer only the end is looked at, where usage and finish
reason stand in every server's JSON: what a model wrote has its quotes escaped there, so it can't pretend to be them.
"""

import re
from typing import Any, Final, NamedTuple

import msgspec

from gateway.wire import errors

_NOTHING: Final = msgspec.Raw()


class Skimmed(msgspec.Struct):
    """The fields of a request that routing needs; prompts stay JSON as they came."""

    model: str
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


class Tally(NamedTuple):
    """What an answer says of itself; 0 and "" where it says nothing."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""


NO_TALLY: Final = Tally()
TAIL: Final = 4096
"""So many bytes of an answer's end are looked at."""

_PROMPT: Final = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,15})').search
_OUTPUT: Final = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,15})').search
_CACHED: Final = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,15})').search
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,32})"').search


def tally(tail: bytes) -> Tally:
    """What the ``tail`` of an answer, whole or streamed, says of usage and finish reason."""
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
