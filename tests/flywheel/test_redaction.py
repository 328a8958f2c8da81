"""`flywheel.redaction`: what is personal is found, what only looks like it is left."""

import re
import time
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.redaction import Finding, find, redact, redact_json
from tests.flywheel.redaction_set import NEGATIVES, POSITIVES

MARK = re.compile(r"⟦(\w+):(.*?)⟧")


def parse(line: str) -> tuple[str, list[Finding]]:
    """A marked line's text, and what is to be found in it."""
    text, findings, place = "", [], 0
    for match in MARK.finditer(line):
        text += line[place : match.start()]
        findings.append(Finding(len(text), len(text) + len(match[2]), match[1]))
        text += match[2]
        place = match.end()
    return text + line[place:], findings


LABELLED = [parse(line) for line in (POSITIVES + NEGATIVES).splitlines() if line]


def test_precision_and_recall() -> None:
    expected = {(text, one) for text, findings in LABELLED for one in findings}
    found = {(text, one) for text, _ in LABELLED for one in find(text)}
    missed, wrong = expected - found, found - expected
    report = f"missed {sorted(missed)}\nwrong {sorted(wrong)}"
    assert len(expected) > 60
    assert len(expected & found) / len(expected) >= 0.97, report
    assert len(expected & found) / len(found) >= 0.97, report


@pytest.mark.parametrize("kind", ["EMAIL", "PHONE", "CARD", "IBAN", "IP", "SECRET"])
def test_every_kind_is_found_in_the_middle_of_a_long_text(kind: str) -> None:
    for text, findings in LABELLED:
        for one in findings:
            if one.kind == kind:
                long = "word, " * 500 + text + " and more" * 500
                assert f"[{kind}]" in redact(long), text


def test_what_was_found_is_replaced() -> None:
    assert redact("Mail a@example.com or b@example.com!") == "Mail [EMAIL] or [EMAIL]!"
    assert redact("nothing") == "nothing"


def test_json_is_read_before_it_is_searched() -> None:
    body = msgspec.json.encode({"messages": [{"content": "Hi\n4111111111111111\n", "n": 4111111111111111}], "b": None})
    assert redact_json(body) == b'{"messages":[{"content":"Hi\\n[CARD]\\n","n":4111111111111111}],"b":null}'
    assert redact_json(b'"a\\u0040example.com"') == b'"[EMAIL]"'
    assert redact_json(b'["data:image/png;base64,AAAA"]') == b'["[DATA]"]'
    assert redact_json(b"broken { a@example.com") == b"broken { [EMAIL]"


@given(st.text(alphabet=st.sampled_from("aA1@.-+ :/_'\n0é=")))
def test_findings_are_in_order_and_apart(text: str) -> None:
    findings = find(text)
    assert all(one.begin < one.end for one in findings)
    assert all(one.end <= following.begin for one, following in pairwise(findings))


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 50_000, "a." * 25_000, "1" * 50_000, "1 " * 25_000, "1." * 25_000, "a@" * 25_000, ":" * 50_000),
        *("a@b." * 12_000, "token=" * 8_000, "+1 " * 16_000, "AB12 " * 10_000, "eyJ" * 16_000, "Bearer " * 7_000),
        "-----BEGIN PRIVATE KEY-----" * 2000,
    ],
    ids=lambda text: text[:8],
)
def test_no_text_takes_forever(text: str) -> None:
    """Not a measurement: what is quadratic or worse would take minutes here."""
    begun = time.process_time()
    find(text)
    assert time.process_time() - begun < 20
