"""What is on the lines of a batch's input, and is every one of them a request?

A file is read in blocks, so that its size doesn't matter. That no ``custom_id`` comes twice is found by their digests:
24 bytes of memory for each line (8 more while they are sorted), 240 MB for ten million.
"""

import hashlib
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec

from gateway.wire import errors
from gateway.wire.batches import BatchError, RequestLine

BLOCK: Final = 1 << 16
"""Bytes that are looked at in one go: about a millisecond of decoding."""
MAX_CUSTOM_ID: Final = 512
MAX_ERRORS: Final = 100

_ENVELOPE: Final = 4096  # what a line may have around its body

decode_line = msgspec.json.Decoder(RequestLine).decode


class Line(NamedTuple):
    """A line with something on it. ``number`` counts from 1, empty ones included; a text too long is cut."""

    number: int
    text: bytes
    too_long: bool = False


class Lines:
    """The lines of a file, a block at a time; no line of more than ``max_body`` bytes and its envelope is kept.

    `take` runs in a thread, and whoever waits for it may be cancelled and `close` meanwhile: then it opens nothing.
    """

    def __init__(self, path: Path, max_body: int) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._limit = max_body + _ENVELOPE
        self.number = 0

    def take(self, most: int = 1 << 30) -> list[Line] | None:
        """Up to ``most`` next lines, about a `BLOCK` of them, which may be none; None at the end."""
        with self._lock:
            return None if self._closed else self._take(most)

    def _take(self, most: int) -> list[Line] | None:
        file = self._file
        if file is None:
            file = self._file = open(self._path, "rb", buffering=1 << 18)  # noqa: SIM115  # closed by close
        lines: list[Line] = []
        size = 0
        while size < BLOCK and len(lines) < most:
            text = file.readline(self._limit + 1)
            if not text:
                return lines or None
            self.number += 1
            size += len(text)
            if len(text) > self._limit and not text.endswith(b"\n"):
                _skip_rest(file)
                lines.append(Line(self.number, text[:80], too_long=True))
            elif not text.isspace():
                lines.append(Line(self.number, text))
        return lines

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()


def _skip_rest(file: BinaryIO) -> None:
    while (text := file.readline(1 << 20)) and not text.endswith(b"\n"):
        pass


class Check:
    """Looks at the lines of an input, block by block, and says at the end what is wrong with them."""

    def __init__(self, endpoint: str, max_body: int) -> None:
        self._endpoint = endpoint
        self._max_body = max_body
        self._digests = bytearray()
        self._numbers = array("Q")
        self.total = 0
        self.errors: list[BatchError] = []
        self.more_errors = 0

    def look_at(self, lines: list[Line]) -> None:
        """Check the next lines."""
        for line in lines:
            self.total += 1
            try:
                custom_id = checked(line, self._endpoint, self._max_body).custom_id
            except LineFault as fault:
                self._add(fault.error)
                continue
            self._digests += hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
            self._numbers.append(line.number)

    def finish(self) -> None:
        """All lines have been seen: find what only shows on all of them."""
        for number in self._repeated():
            message = (
                "The custom_id of this request is a duplicate of another request. The custom_id parameter must be "
                "unique for each request in a batch."
            )
            self._add(BatchError(code="duplicate_custom_id", message=message, line=number, param="custom_id"))
        self.errors.sort(key=lambda error: error.line or 0)
        if not self.total:
            message = "The batch input file is empty. Please ensure that the batch contains at least one request."
            self._add(BatchError(code="empty_file", message=message))
        if self.more_errors:
            message = f"{self.more_errors} more errors were found."
            self.errors.append(BatchError(code="too_many_errors", message=message))
        self._digests = bytearray()
        self._numbers = array("Q")

    def _add(self, error: BatchError) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(error)
        else:
            self.more_errors += 1

    def _repeated(self) -> Iterator[int]:
        """The numbers of lines whose ``custom_id`` an earlier line has, in order."""
        import numpy as np

        halves = np.frombuffer(self._digests, dtype=np.uint64).reshape(-1, 2)
        order = np.argsort(halves[:, 0], kind="stable")
        # Equal first halves lie side by side; that different ids share theirs is a matter of 2**-64.
        ordered = halves[order]
        same = (ordered[1:] == ordered[:-1]).all(axis=1)
        for index in sorted(order[1:][same].tolist()):
            yield self._numbers[index]


class LineFault(Exception):
    """A line that is no request of its batch."""

    def __init__(self, line: Line, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = BatchError(code=code, message=message, line=line.number, param=param)


def checked(line: Line, endpoint: str, max_body: int) -> RequestLine:
    """The request on ``line``.

    Raises:
        LineFault: it is none, or none for ``endpoint``.
    """
    if line.too_long:
        raise LineFault(line, "line_too_long", f"The line is too long: this server accepts bodies of {max_body} bytes.")
    try:
        request = decode_line(line.text)
    except msgspec.ValidationError as error:
        found = errors.invalid_field(error)
        message = found.message if found.param else "This line is not a JSON object."
        raise LineFault(line, found.code or "", message, found.param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LineFault(line, "invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not 0 < len(request.custom_id) <= MAX_CUSTOM_ID:
        message = f"A custom_id has between 1 and {MAX_CUSTOM_ID} characters."
        raise LineFault(line, "invalid_custom_id", message, "custom_id")
    if request.method != "POST":
        raise LineFault(line, "invalid_method", f"The method is '{request.method[:20]}', but must be 'POST'.", "method")
    if request.url != endpoint:
        message = f"The url '{request.url[:100]}' is not the endpoint of this batch, '{endpoint}'."
        raise LineFault(line, "invalid_url", message, "url")
    body = bytes(request.body)
    if not body.startswith(b"{"):
        raise LineFault(line, "invalid_type", "Invalid type for 'body': expected an object.", "body")
    if len(body) > max_body:
        message = f"The body has {len(body)} bytes; this server accepts {max_body}."
        raise LineFault(line, "line_too_long", message, "body")
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            raise LineFault(line, "invalid_json_line", "This line is not parseable as valid JSON.") from None
    return request
