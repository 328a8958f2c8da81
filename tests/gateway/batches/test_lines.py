"""Reading an input, and checking it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batches import lines
from gateway.batches.lines import MAX_ERRORS, Check, Line, Lines, checked
from gateway.wire.batches import BATCH_ERROR_CODES, BatchError
from tests.gateway.batches.builders import ENDPOINT, jsonl, line


def read(path: Path, data: bytes, max_body: int = 1 << 20, most: int = 1 << 30) -> list[Line]:
    path.write_bytes(data)
    reader = Lines(path, max_body)
    found = []
    while (block := reader.take(most)) is not None:
        found += block
    reader.close()
    return found


def errors_of(tmp_path: Path, data: bytes, max_body: int = 1 << 20) -> list[BatchError]:
    check = Check(ENDPOINT, max_body)
    check.look_at(read(tmp_path / "input", data, max_body))
    check.finish()
    return check.errors


def test_empty_lines_count_but_are_no_requests(tmp_path: Path) -> None:
    found = read(tmp_path / "x", b"\na\n\r\n  \nb\r\n\nc")
    assert [(one.number, one.text.strip()) for one in found] == [(2, b"a"), (5, b"b"), (7, b"c")]
    assert read(tmp_path / "x", b"") == []
    assert read(tmp_path / "x", b"\n" * 300_000 + b"x") == [Line(300_001, b"x")]


def test_a_line_that_is_too_long_is_not_kept(tmp_path: Path) -> None:
    long = b"x" * 3_000_000
    found = read(tmp_path / "x", b"a\n" + long + b"\nb\n" + long, max_body=1000)
    assert [(one.number, one.too_long) for one in found] == [(1, False), (2, True), (3, False), (4, True)]
    assert all(len(one.text) <= 80 for one in found)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_few_at_a_time(tmp_path: Path, size: int) -> None:
    assert len(read(tmp_path / "x", b"line\n" * 20, most=size)) == 20


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=200).map(lambda data: data.replace(b"x", b"\n")))
def test_lines_are_what_python_splits(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    found = read(tmp_path_factory.mktemp("lines") / "x", data)
    expected = [(number, text) for number, text in enumerate(data.split(b"\n"), 1) if text and not text.isspace()]
    assert [(one.number, one.text.removesuffix(b"\n")) for one in found] == expected


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"nonsense", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (jsonl([line("a", body={"x": "?"})]).strip().replace(b"?", b"\xff"), "invalid_json_line", None),
        (b'{"body": ' + b"[" * 4000, "invalid_json_line", None),
        (b"[]", "invalid_type", None),
        ({**line("a"), "custom_id": 1}, "invalid_type", "custom_id"),
        (line(""), "invalid_custom_id", "custom_id"),
        (line("x" * 513), "invalid_custom_id", "custom_id"),
        (line("a", method="GET"), "invalid_method", "method"),
        (line("a", method="post"), "invalid_method", "method"),
        (line("a", url="/v1/embeddings"), "invalid_url", "url"),
        (line("a", body=[]), "invalid_type", "body"),
        (line("a", body=None), "invalid_type", "body"),
        (line("a", body="{}"), "invalid_type", "body"),
        ({"method": "POST", "url": ENDPOINT, "body": {}}, "missing_required_parameter", "custom_id"),
        ({"custom_id": "a", "method": "POST", "url": ENDPOINT}, "missing_required_parameter", "body"),
        (line("a", body={"x": "y" * 1000}), "line_too_long", "body"),
        (line("a", body={"x": "y" * 9000}), "line_too_long", None),
    ],
)  # fmt: skip
def test_what_is_no_request(tmp_path: Path, text: Any, code: str, param: str | None) -> None:
    (error,) = errors_of(tmp_path, jsonl([line("fine"), text, line("fine too")]), max_body=900)
    assert (error.code, error.param, error.line) == (code, param, 2)
    assert error.message.endswith(".")
    assert error.code in BATCH_ERROR_CODES


def test_a_request_is_left_as_it_was_written() -> None:
    text = (
        b'{"url": "/v1/chat/completions", "body":  {"a" : [1,  2], "b": "\xc3\xa9"} , "custom_id":"i", "method":"POST"}'
    )
    request = checked(Line(1, text), ENDPOINT, 1000)
    assert bytes(request.body) == b'{"a" : [1,  2], "b": "\xc3\xa9"}'


def test_errors_are_in_the_order_of_lines_and_not_endless(tmp_path: Path) -> None:
    found = errors_of(tmp_path, jsonl([line("a"), line("b"), line("a"), b"{", line("b"), line("a")]))
    assert [(error.line, error.code) for error in found] == [
        (3, "duplicate_custom_id"),
        (4, "invalid_json_line"),
        (5, "duplicate_custom_id"),
        (6, "duplicate_custom_id"),
    ]
    many = errors_of(tmp_path, b"{\n" * (MAX_ERRORS + 50))
    assert len(many) == MAX_ERRORS + 1
    assert many[-1] == BatchError(code="too_many_errors", message="50 more errors were found.")


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.sampled_from("abcdefgh") | st.text(min_size=1, max_size=3), max_size=60))
def test_ids_that_come_twice_are_found(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    ids = [id.encode("utf-8", "replace").decode() for id in ids]
    found = errors_of(tmp_path_factory.mktemp("lines"), jsonl([line(id) for id in ids]))
    expected = [number for number, id in enumerate(ids, 1) if id in ids[: number - 1]]
    assert [error.line for error in found if error.code == "duplicate_custom_id"] == expected
    assert (not ids) == any(error.code == "empty_file" for error in found)


def test_blocks_are_small(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(jsonl([line(str(number)) for number in range(5000)]))
    reader = Lines(path, 1000)
    sizes = []
    while (block := reader.take()) is not None:
        sizes.append(sum(len(one.text) for one in block))
    reader.close()
    assert len(sizes) > 3
    assert max(sizes) < lines.BLOCK + 200
    assert json.loads(path.read_bytes().splitlines()[-1])["custom_id"] == "4999"


def test_what_was_closed_opens_nothing(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "gone.jsonl", 100)
    lines.close()
    assert lines.take() is None  # and doesn't look for the file, which isn't there
