"""`flywheel.redaction`: what is personal is found, what only looks like it is left."""

import json
import re
import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.redaction import Finding, find, redact, redact_json
from tests.flywheel.redaction_set import NEGATIVES, POSITIVES

FULL_WIDTH = {code: chr(code + 0xFEE0) for code in range(0x21, 0x7F)}
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
    body = msgspec.json.encode(
        {"messages": [{"content": "Hi\n4111111111111111\n", "seed": 4111111111111112}], "b": None}
    )
    assert redact_json(body) == b'{"messages":[{"content":"Hi\\n[CARD]\\n","seed":4111111111111112}],"b":null}'
    assert redact_json(b'"a\\u0040example.com"') == b'"[EMAIL]"'
    assert redact_json(b'["data:image/png;base64,AAAA"]') == b'["[DATA]"]'
    assert redact_json(b"broken { a@example.com") == b"broken { [EMAIL]"
    assert redact_json(b'{ "a": [1.50, "x"] }') == b'{"a":[1.5,"x"]}'


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1111 of anna@example.com".translate(FULL_WIDTH),
        "٤١١١١١١١١١١١١١١١ and \u0967\u0968 anna@example.com",  # digits of other scripts
        "4111\u00a01111\u202f1111\u20091111, anna@example.com",  # other spaces
        "4111\u20111111\u20131111\u22121111; anna@example.com",  # other hyphens
        "4111\u200b1111\u00ad1111\u20601111! anna@example.com",  # what can't be seen
        "print('to anna@example.com\\n4111111111111111\\n')",  # source
        "x.y@example.org.anna@example.com 4111111111111111",  # one behind the other
    ],
)
def test_other_ways_to_write_it(text: str) -> None:
    redacted = redact(text)
    assert "[CARD]" in redacted and "[EMAIL]" in redacted
    assert not re.search(r"anna|\d.?\d.?\d.?\d", redacted)


def in_json(value: Any) -> str:
    return redact_json(msgspec.json.encode(value)).decode()


@pytest.mark.parametrize(
    "value",
    [
        {"anna@example.com": 1},
        {"arguments": json.dumps({"to": "anna@example.com"})},
        {"arguments": json.dumps({"text": "card\n4111111111111111"})},
        {"arguments": json.dumps({"deep": json.dumps(["+49 30 901820", {"anna@example.com": 1}])})},
        {"arguments": ' {"to": "anna\\u0040example.com"} '},
        {"arguments": '{"to": "anna@example.com", "to": "nobody"}'},  # the first one is not what is read
        {"arguments": '{"to": "anna\\u0040example.com", "to": "nobody"}'},
        {"arguments": '{"text": "it broke off\\n4111111111111111'},
        {"arguments": json.dumps({"password": "hunter2hunter2"})},
        {"client_secret": "a1b2c3d4e5f6a7b8"},
        {"card": 4111111111111111},
        {"content": [{"type": "image", "source": {"type": "base64", "data": "iVBORw0KGgo" * 100}}]},
        {"content": "![x](data:image/png;base64,iVBORw0KGgo=) and text"},
        {"content": "data:application/pdf;base64,iVBORw0KGgo="},
        {"logprobs": {"content": [{"token": "anna"}, {"token": "@example.com"}]}},
        {"prompt": [4111, 1111]},
        {"input": [[4111, 1111], [1111]]},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_nothing_hides_in_json(value: Any) -> None:
    assert not re.search("anna|4111|901820|hunter2|a1b2c3|iVBOR", in_json(value))


def test_what_is_json_within_json_stays_as_it_is_where_nothing_is_found() -> None:
    value = {"arguments": '{ "city":  "Paris",\n"n": 1.50 }', "text": "[1, 2", "empty": "", "list": " [ ] "}
    assert msgspec.json.decode(in_json(value)) == value


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "anna@example.com", "a": "nobody"}',
        b'{"a": "anna@example.com \xff"}',
        b'{"a": "anna\\u0040example.com',
        b'{"a": "\\ud800 anna@example.com"}',
        b'{"a": 1e999, "b": "anna@example.com"}',
        b"[" * 100_000 + b'"anna@example.com"',
        b"[" * 950 + b'"anna@example.com"' + b"]" * 950,
        b'{"choices": [{"logprobs": {"tokens": ["anna", "@exam',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_is_hardly_json_is_searched_all_the_same(body: bytes) -> None:
    assert b"anna" not in redact_json(body)


def test_only_what_is_in_a_string_is_taken_from_it() -> None:
    """All strings are searched at once; what ends one is no separator of a number or name."""
    value = ["411111", "1111111111", "anna", "@example.com", "token =", "a1b2c3d4e5f6", "x" * 20, "anna@example.com"]
    assert msgspec.json.decode(in_json(value)) == [*value[:-1], "[EMAIL]"]


def test_a_private_key_is_found_even_if_it_broke_off() -> None:
    lines = "\n".join(["MIIEowIBAAKCAQEAx7j3v2aTzzzz0123456789"] * 30)
    begin, end = "-----BEGIN RSA PRIVATE KEY-----\n", "\n-----END RSA PRIVATE KEY-----"
    assert redact(f"a {begin}{lines}{end} b {begin}{lines}{end} c") == "a [SECRET] b [SECRET] c"
    assert redact(f"a {begin}{lines[:-10]}") == "a [SECRET]"
    assert redact(f"{begin} is how it begins.") == f"{begin} is how it begins."


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
        *(
            "@" * 50_000,
            "1234-5678-" * 5_000,
            "::" * 25_000,
            "AA00" * 12_000,
            "abcdefghijklmnop " * 3_000,
            "sk-" * 16_000,
        ),
        *(
            "aB3+/" * 10_000,
            ";base64," * 6_000,
            "data:;" * 8_000,
            "1".translate(FULL_WIDTH) * 50_000,
            "[" * 50_000,
            "\\u0040" * 8_000,
        ),
        "-----BEGIN PRIVATE KEY-----" * 2000,
    ],
    ids=lambda text: text[:8],
)
def test_no_text_takes_forever(text: str) -> None:
    """Not a measurement: what is quadratic or worse would take minutes here."""
    begun = time.process_time()
    redact_json(msgspec.json.encode([text]))
    assert time.process_time() - begun < 20
