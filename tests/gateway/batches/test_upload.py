"""A form that brings a file, in any pieces."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batches.upload import UploadForm
from gateway.wire import errors

KIND = b"multipart/form-data; boundary=line"


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    extra = "" if filename is None else f'; filename="{filename}"'
    return f'--line\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--line--\r\n"


PURPOSE = part("purpose", b"batch")
FILE = part("file", b"content", "a.jsonl")


def fed(data: bytes, size: int = 1 << 30, kind: bytes = KIND) -> tuple[UploadForm, bytes]:
    found = UploadForm(kind)
    content = b""
    for start in range(0, len(data), size):
        found.feed(data[start : start + size])
        content += found.take()
    found.finish()
    return found, content


def test_a_file_and_its_fields() -> None:
    found, content = fed(form(PURPOSE, FILE))
    assert (found.purpose, found.filename, found.expires_after, content) == ("batch", "a.jsonl", None, b"content")
    found, _ = fed(
        form(FILE, part("expires_after[anchor]", b"created_at"), part("expires_after[seconds]", b"3600"), PURPOSE)
    )
    assert found.expires_after == 3600


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=300) | st.text("\r\n-line", max_size=60).map(str.encode), size=st.integers(1, 80))
def test_any_content_in_any_pieces(content: bytes, size: int) -> None:
    if b"\r\n--line" in b"\r\n" + content:
        return
    found, received = fed(form(part("file", content, "x"), PURPOSE), size)
    assert received == content
    assert (found.filename, found.pending) == ("x", 0)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("C:\\\\folder\\\\a.jsonl", "a.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("", "upload"),
        ("a\tb", "ab"),
        ("é" * 300, "é" * 255),
    ],
)
def test_names_without_folders(name: str, kept: str) -> None:
    assert fed(form(PURPOSE, part("file", b"", name)))[0].filename == kept


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (form(FILE), "Missing required field 'purpose'"),
        (form(PURPOSE), "Missing required field 'file'"),
        (form(PURPOSE, part("file", b"text")), "must be sent as a file"),
        (form(PURPOSE, FILE, FILE), "only one can be sent"),
        (form(FILE, part("purpose", b"party")), "'party' is not one of assistants, batch"),
        (form(FILE, part("purpose", b"\xff")), "is not one of"),
        (form(FILE, part("purpose", b"x" * 5000)), "more than 4096 bytes"),
        (form(FILE, *[part(f"f{n}", b"") for n in range(40)]), "more than 32 parts"),
        (form(FILE, b"--line\r\nX: y\r\n\r\nvalue\r\n"), "a part of the form has no name"),
        (form(FILE, PURPOSE)[:-4], "ends before its last boundary"),
        (FILE, "ends before its last boundary"),
        (b"", "ends before its last boundary"),
        (b"nonsense", "no valid multipart/form-data"),
        (form(FILE, PURPOSE, part("expires_after", b"{}")), "write it as expires_after"),
        (form(FILE, PURPOSE, part("expires_after[seconds]", b"3600")), "'expires_after.anchor'"),
        (
            form(FILE, PURPOSE, part("expires_after[anchor]", b"created_at"), part("expires_after[seconds]", b"9")),
            "between 3600 and 2592000, not 9",
        ),
        (
            form(FILE, PURPOSE, part("expires_after[anchor]", b"created_at"), part("expires_after[seconds]", b"soon")),
            "'expires_after.seconds'",
        ),
    ],
)
def test_forms_that_are_none(data: bytes, message: str) -> None:
    with pytest.raises(errors.ApiError, match=message) as refused:
        fed(data, 50)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "kind", [b"", b"application/json", b"multipart/form-data", b"multipart/form-data; boundary=" + b"x" * 300]
)
def test_content_types_that_are_none(kind: bytes) -> None:
    with pytest.raises(errors.ApiError, match=r"multipart/form-data"):
        UploadForm(kind)


@settings(deadline=None, max_examples=200)
@given(data=st.lists(st.sampled_from([b"--line", b"\r\n", b"--", b": ", b"x", b";", b'"', FILE, PURPOSE, b"\0"])))
def test_any_bytes_are_a_form_or_refused(data: list[bytes]) -> None:
    found: Any = None
    try:
        found, _ = fed(b"".join(data), 7)
    except errors.ApiError as error:
        assert error.status == 400
    assert found is None or found.purpose == "batch"
