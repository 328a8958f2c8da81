"""What becomes of two answers to one request? A comparison, and a line for who wants to look at both.

For a thread: on one core of a small cloud machine it takes 0.4 ms for answers of 1,000 characters, and 10 ms for the
longest that are compared whole. Python's threads take turns of 5 ms, which clients would notice if their event loop had
to wait so long each time that something comes; here they are made shorter.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from flywheel.content import Mode, keep_json, keep_text
from gateway.traffic.answers import Answer, Said, read_answer
from gateway.traffic.shadow.compare import Comparison, compare
from gateway.wire.shadows import ShadowPair

_COMPARED: Final = 20_000  # characters of a text; of the longest that `compare` looks at word by word
_ARGUMENTS: Final = 100_000  # characters of all arguments of calls; of more it is only told whether they are the same
_KEPT: Final = 1 << 16  # characters of a text or request that are kept for review
_CALLS: Final = 16  # of an answer that are kept
_TURN: Final = 0.0005  # seconds

_encode: Final = msgspec.json.Encoder().encode


class Pair(NamedTuple):
    """A model's answer, and the body of a shadow's.

    ``asked``: what the shadow was asked; None: keep nothing. ``mode``: how much may be kept of what was said.
    """

    request_id: str
    model: str
    target: str
    endpoint: str
    at: float
    asked: bytes | None
    answer: Answer | Said
    said: bytes
    mode: Mode = "full"


class Judged(NamedTuple):
    """How the answers differ, and what may be kept of that.

    ``paths``: of what differs within JSON; ``line``: the `ShadowPair` as JSON, empty where it isn't to be kept.
    """

    comparison: Comparison
    paths: tuple[str, ...]
    line: bytes


def judge_all(pairs: Sequence[Pair]) -> list[Judged | None]:
    """What becomes of each; None where an answer can't be read, or was cut."""
    with _short_turns():
        return [judge(pair) for pair in pairs]


def judge(pair: Pair) -> Judged | None:
    """What becomes of a pair; None where an answer can't be read, or was cut."""
    answer = pair.answer.read() if isinstance(pair.answer, Said) else pair.answer
    shadow = read_answer(pair.endpoint, pair.said, streamed=False)
    if answer is None or shadow is None or not (answer.finish_reason and shadow.finish_reason):
        return None
    comparison = compare_beginnings(answer, shadow)
    mode = "redacted" if pair.mode == "full" else pair.mode  # they are counted, and stay when their user is erased
    paths = tuple(path for one in comparison.fields or () if (path := keep_text(mode, one)))
    if pair.asked is None:
        return Judged(comparison, paths, b"")
    return Judged(comparison, paths, _line(pair, pair.asked, answer, shadow, comparison, paths))


def compare_beginnings(first: Answer, other: Answer) -> Comparison:
    """As `compare`, but of long texts the first 20,000 characters; `exact` and `length` are those of the whole."""
    found = compare(_beginning(first), _beginning(other))
    if max(len(first.text), len(other.text)) <= _COMPARED:
        return found
    length = len(other.text) / len(first.text) if first.text else 0.0
    return msgspec.structs.replace(found, exact=first.text == other.text and first.calls == other.calls, length=length)


def _beginning(answer: Answer) -> Answer:
    calls = answer.calls
    if sum(len(arguments) for _, arguments in calls) > _ARGUMENTS:
        calls = tuple((name, blake2b(arguments.encode(errors="replace")).hexdigest()) for name, arguments in calls)
    return Answer(answer.text[:_COMPARED], calls, answer.finish_reason)


def _line(
    pair: Pair, asked: bytes, answer: Answer, shadow: Answer, comparison: Comparison, paths: tuple[str, ...]
) -> bytes:
    agrees = comparison.agrees
    if pair.mode != "full":
        asked = keep_json(pair.mode, asked) or b""
        answer, shadow = _without(pair.mode, answer), _without(pair.mode, shadow)
        fields = None if comparison.fields is None else paths
        left = f"{answer.text}\n{shadow.text}"  # a piece of a phone number is not in it any more
        numbers, names = ([one for one in which if one in left] for which in (comparison.numbers, comparison.names))
        comparison = msgspec.structs.replace(comparison, fields=fields, numbers=tuple(numbers), names=tuple(names))
    return _encode(
        ShadowPair(
            request_id=pair.request_id,
            model=pair.model,
            target=pair.target,
            endpoint=pair.endpoint,
            at=pair.at,
            agrees=agrees,
            request=asked.decode(errors="replace") if len(asked) <= _KEPT else None,
            answer=_kept(answer),
            shadow=_kept(shadow),
            comparison=comparison,
        )
    )


def _without(mode: Mode, answer: Answer) -> Answer:
    """An answer, all of it, without what ``mode`` doesn't let be kept."""
    calls = [(name, (keep_json(mode, said.encode()) or b"").decode()) for name, said in answer.calls]
    return Answer(keep_text(mode, answer.text), tuple(calls), answer.finish_reason)


def _kept(answer: Answer) -> Answer:
    calls = [(name, arguments[:_KEPT]) for name, arguments in answer.calls[:_CALLS]]
    return Answer(answer.text[:_KEPT], tuple(calls), answer.finish_reason)


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Have other threads wait for at most half a millisecond, while there is no other like this."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
