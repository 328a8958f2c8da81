"""Which lines of a batch have their result, and how is none lost or written twice, whatever happens?

Results are appended to the files that clients will download, and are on the disk before they are counted. There is no
journal beside them: the id of a result has its line's number in it, so that the files say, after a crash, which lines
are done. What a crash left of a line at the end of a file is cut off.
"""

import contextlib
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from gateway.batches.files import write_all
from gateway.batches.folder import sync_folder
from gateway.wire.batches import BatchUsage, InputDetails, LineError, LineResponse, OutputDetails, ResultLine

Outcome = Literal["completed", "failed"]

_ID: Final = re.compile(rb'\{"id":"batch_req_([0-9a-f]+)_([0-9a-f]+)","custom_id":')
_END: Final = b"}\n"
_STEP: Final = 1 << 17

_encode = msgspec.json.Encoder().encode


def result_id(batch_id: str, number: int) -> str:
    """The id of the result of line ``number``."""
    return f"batch_req_{batch_id.removeprefix('batch_')}_{number:x}"


def answered(batch_id: str, number: int, custom_id: str, status: int, request_id: str, body: bytes) -> bytes:
    """The line of a request that got an answer, be it an error."""
    raw = msgspec.Raw(body.replace(b"\n", b" "))  # a raw line break is white space in JSON, nothing else
    response = LineResponse(status, request_id, raw)
    return _encode(ResultLine(result_id(batch_id, number), custom_id, response, None)) + b"\n"


def unanswered(batch_id: str, number: int, custom_id: str, code: str, message: str) -> bytes:
    """The line of a request that got none."""
    return _encode(ResultLine(result_id(batch_id, number), custom_id, None, LineError(code, message))) + b"\n"


class _Usage(msgspec.Struct):
    """What an answer says of its tokens: chat's and completions' names, and those of responses."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    body: _Body


class _Answered(msgspec.Struct):
    """All that is read of a result once it is written."""

    response: _Response


_decode = msgspec.json.Decoder(_Answered).decode


class Results:
    """The two files of results of one batch: ``output.jsonl`` and ``errors.jsonl`` in its folder.

    Methods block and raise OSError: call them in threads, one at a time. Nothing may be appended before `recover` has
    been run to its end.
    """

    def __init__(self, folder: Path, batch_id: str) -> None:
        self._batch = batch_id.removeprefix("batch_").encode()
        self._files: dict[Outcome, _ResultFile] = {}
        self._done = bytearray()
        self._tokens = _Tokens()
        try:
            self._files["completed"] = _ResultFile(folder / "output.jsonl")
            self._files["failed"] = _ResultFile(folder / "errors.jsonl")
            sync_folder(folder)
        except OSError:
            self.close()
            raise

    @property
    def completed(self) -> int:
        return self._files["completed"].count

    @property
    def failed(self) -> int:
        return self._files["failed"].count

    @property
    def usage(self) -> BatchUsage:
        """The tokens of all answers."""
        return self._tokens.usage()

    def path(self, outcome: Outcome) -> Path | None:
        """The file of results that ended so, or None where there are none."""
        file = self._files[outcome]
        return file.path if file.count else None

    def done(self, number: int) -> bool:
        """Whether line ``number`` has its result."""
        byte = number >> 3
        return byte < len(self._done) and bool(self._done[byte] >> (number & 7) & 1)

    def recover(self) -> Generator[None]:
        """Read what there is, a bit at a time, and cut what isn't whole."""
        for outcome, file in self._files.items():
            for found in file.recover(self._batch):
                if found is None:
                    yield
                else:
                    self._mark(found[0])
                    if outcome == "completed":
                        self._tokens.count(found[1])

    def append(self, lines: dict[Outcome, list[tuple[int, bytes]]]) -> None:
        """Write results, each with the number of its line, and return when they are on the disk."""
        for outcome, some in lines.items():
            if some:
                self._files[outcome].append(b"".join(text for _, text in some), len(some))
                for number, text in some:
                    self._mark(number)
                    if outcome == "completed":
                        self._tokens.count(text)
                some.clear()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _mark(self, number: int) -> None:
        byte = number >> 3
        if byte >= len(self._done):
            self._done.extend(bytes(byte + 1 - len(self._done)))
        self._done[byte] |= 1 << (number & 7)


class _Tokens:
    """Sums of what answers say of their tokens."""

    def __init__(self) -> None:
        self._input = self._cached = self._output = self._reasoning = 0

    def count(self, text: bytes) -> None:
        """Add the tokens of the answer on a line, if it says so."""
        try:
            usage = _decode(text).response.body.usage
        except msgspec.ValidationError:
            return
        if usage is not None:
            self._input += usage.prompt_tokens + usage.input_tokens
            self._output += usage.completion_tokens + usage.output_tokens
            if input := usage.prompt_tokens_details or usage.input_tokens_details:
                self._cached += input.cached_tokens
            if output := usage.completion_tokens_details or usage.output_tokens_details:
                self._reasoning += output.reasoning_tokens

    def usage(self) -> BatchUsage:
        return BatchUsage(
            input_tokens=self._input,
            output_tokens=self._output,
            total_tokens=self._input + self._output,
            input_tokens_details=InputDetails(self._cached),
            output_tokens_details=OutputDetails(self._reasoning),
        )


class _ResultFile:
    """One file of results. ``size`` and ``count`` are those of what is certain to be on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.count = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._torn = False

    def recover(self, batch: bytes) -> Iterator[tuple[int, bytes] | None]:
        """The results with the numbers of their lines, and None now and then, where others may have their turn."""
        seen = 0
        with open(self.path, "rb") as file:
            for line in file:
                found = _ID.match(line)
                if found is None or found[1] != batch or not line.endswith(_END):
                    break
                self.size += len(line)
                self.count += 1
                yield int(found[2], 16), line
                if self.size - seen > _STEP:
                    seen = self.size
                    yield None
        os.ftruncate(self._fd, self.size)
        os.fsync(self._fd)

    def append(self, data: bytes, count: int) -> None:
        if self._torn:
            os.ftruncate(self._fd, self.size)
        self._torn = True
        try:
            write_all(self._fd, data)
            os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
                self._torn = False
            raise
        self._torn = False
        self.size += len(data)
        self.count += count

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
