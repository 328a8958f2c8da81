"""What an ending says about a variant: an ending of each kind, and what is not known of it."""

import pytest

from gateway.traffic.answers import Answer
from gateway.traffic.ending import Ending
from gateway.traffic.rollout.blocks import Compared, Outcome
from gateway.traffic.rollout.guard import make_guard
from gateway.traffic.rollout.outcome import outcome_of

HELLO = Answer("Hello there.", finish_reason="stop")
SORRY = Answer("I'm sorry, but I can't help with that.")
ALL = frozenset({"error", "refusal", "bad_outcome"})
OF_ANSWERS = frozenset({"refusal", "bad_outcome"})
TIMES = {"ttft": 0.5, "itl": 0.02}


def test_an_answer_has_all_values() -> None:
    ending = Ending(200, "ok", 0.5, 0.02, 3.0, 120, 0.7, HELLO)
    assert outcome_of(ending) == Outcome({**TIMES, "e2e": 3.0, "length": 120.0, "uncertainty": 0.7})


def test_what_an_answer_does_not_say_is_left_out() -> None:
    assert outcome_of(Ending(200, "ok", e2e=3.0)) == Outcome({"e2e": 3.0}, unknown=OF_ANSWERS)


@pytest.mark.parametrize(
    ("answer", "events"),
    [
        (HELLO, set()),
        (Answer("", calls=(("weather", "{}"),)), set()),
        (Answer("Cut", finish_reason="length"), set()),
        (SORRY, {"refusal", "bad_outcome"}),
        (Answer(" \n"), {"bad_outcome"}),
        (Answer("It is", finish_reason="content_filter"), {"bad_outcome"}),
    ],
)
def test_bad_things_in_answers(answer: Answer, events: set[str]) -> None:
    found = outcome_of(Ending(200, "ok", e2e=1.0, answer=answer))
    assert found.events == events and not found.unknown


@pytest.mark.parametrize(
    "ending",
    [
        Ending(500, "failed", e2e=0.01),
        Ending(504, "failed", e2e=10.0),
        Ending(429, "refused", e2e=0.001),
        Ending(200, "failed", 0.5, 0.02, 3.0, 50, answer=HELLO),
    ],
)
def test_a_failure_is_an_error_and_never_a_quick_or_short_answer(ending: Ending) -> None:
    found = outcome_of(ending)
    assert found.events == {"error", "bad_outcome"}
    assert found.unknown == {"refusal"}
    assert found.values == (TIMES if ending.status == 200 else {})


def test_of_an_invalid_request_nothing_is_known() -> None:
    assert outcome_of(Ending(400, "invalid", e2e=0.001)) == Outcome({}, unknown=ALL)


def test_a_client_that_leaves_is_no_error_of_the_variant() -> None:
    early = outcome_of(Ending(499, "disconnected", e2e=30.0))
    assert early == Outcome({"ttft": 30.0, "e2e": 30.0}, unknown=OF_ANSWERS)
    midway = outcome_of(Ending(200, "disconnected", 0.5, 0.02, 3.0, 50, answer=HELLO))
    assert midway == Outcome(TIMES)
    nothing_yet = outcome_of(Ending(200, "disconnected", 0.5, None, 0.6, 0, answer=Answer()))
    assert nothing_yet == Outcome({"ttft": 0.5}, unknown=OF_ANSWERS)
    assert outcome_of(Ending(200, "disconnected", answer=SORRY)).events == OF_ANSWERS


def test_what_is_not_known_is_not_counted() -> None:
    guard = make_guard("refusal_rate", 0.0, 0.1)
    unknown, sorry = outcome_of(Ending(400, "invalid")), outcome_of(Ending(200, "ok", answer=SORRY))
    guard.add(Compared(control=[unknown] * 5 + [sorry], canary=[unknown, sorry]))
    assert guard.describe() == "refusal_rate 100.0% of 1 requests, the control's 100.0% of 1"


def test_values_of_two_invalid_requests_are_not_shared() -> None:
    first = outcome_of(Ending(400, "invalid"))
    first.values["feedback"] = 1.0
    assert outcome_of(Ending(400, "invalid")).values == {}
