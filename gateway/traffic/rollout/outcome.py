"""What does a request's ending say about the variant that served it? Its values, and the bad things that happened.

| ending | `error` | values |
| --- | --- | --- |
| ok | no | all that are known |
| failed, or refused because the variant is overloaded | yes | of a stream, how it went until then |
| refused before it went to any variant: a limit of its key, a full queue | not known | none |
| the client left | no | of a stream, how it went until then; before anything had come: the time that it waited |
| the request was invalid | not known | none |

`refusal` is an answer that begins as refusals do (`gateway.traffic.shadow.compare.is_refusal`). `bad_outcome` is an
error, a refusal, an empty answer that calls no tool either, or one that a content filter ended. Neither is known where
nobody has read the answer, but for errors, which are bad outcomes in any case.

The values are `ttft`, `itl`, `e2e` (seconds), `length` (output tokens) and `uncertainty` (nats). What isn't known is
left out, and is compared with nobody's: the length of an answer that broke off, or how soon something failed.
"""

from typing import Final

from gateway.traffic.answers import Answer
from gateway.traffic.ending import Ending
from gateway.traffic.rollout.blocks import Outcome
from gateway.traffic.shadow.compare import is_refusal

READ_ANSWERS: Final = frozenset({"refusal_rate", "bad_outcome_rate"})
"""Guards that need to know what was answered."""
_ALL: Final = frozenset({"error", "refusal", "bad_outcome"})
_OF_ANSWERS: Final = frozenset({"refusal", "bad_outcome"})
_NOTHING: Final = Outcome({}, unknown=_ALL)
_LEFT_EARLY: Final = 499


def outcome_of(ending: Ending) -> Outcome:
    """What a rollout learns from a request."""
    match ending.outcome:
        case "invalid":
            return _NOTHING._replace(values={})
        case "failed" | "refused":
            return Outcome(_stream_values(ending), frozenset({"error", "bad_outcome"}), frozenset({"refusal"}))
        case "disconnected":
            return Outcome(_values_so_far(ending), *_events(ending.answer, whole=False))
        case "ok":
            return Outcome(_values(ending), *_events(ending.answer, whole=True))


def _values(ending: Ending) -> dict[str, float]:
    values = _stream_values(ending)
    values["e2e"] = ending.e2e
    if ending.output_tokens:
        values["length"] = float(ending.output_tokens)
    return values


def _values_so_far(ending: Ending) -> dict[str, float]:
    if ending.status == _LEFT_EARLY and ending.ttft is None:
        return {"ttft": ending.e2e, "e2e": ending.e2e}  # it has waited so long at least
    return _stream_values(ending)


def _stream_values(ending: Ending) -> dict[str, float]:
    known = {"ttft": ending.ttft, "itl": ending.itl, "uncertainty": ending.uncertainty}
    return {name: value for name, value in known.items() if value is not None}


def _events(answer: Answer | None, *, whole: bool) -> tuple[frozenset[str], frozenset[str]]:
    """The bad things in an answer, and those of which nothing is known."""
    if answer is None or (not whole and not answer.text and not answer.calls):
        return frozenset(), _OF_ANSWERS
    if is_refusal(answer):
        return frozenset({"refusal", "bad_outcome"}), frozenset()
    empty = not answer.text.strip() and not answer.calls
    if empty or answer.finish_reason == "content_filter":
        return frozenset({"bad_outcome"}), frozenset()
    return frozenset(), frozenset()
