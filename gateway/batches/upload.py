"""How does an upload's form become a file and its fields, while it is still arriving?"""

import logging
import re
from typing import Final

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.wire import errors
from gateway.wire.files import ExpiresAfter, Purpose, check_purpose

_MAX_FIELD: Final = 4096
_MAX_PARTS: Final = 32
_MAX_NAME: Final = 255
_EXPIRES: Final = re.compile(r"expires_after\[(\w+)\]")

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what we answer with a 400


class UploadForm:
    """A form of ``multipart/form-data`` with a file in it.

    The file's bytes wait in here until they are taken; fields are small, and kept. Once the last bytes were fed,
    `finish` says whether the form was complete, and sets ``filename``, ``purpose`` and ``expires_after`` (seconds).

    Raises:
        ApiError: 400; the content type is another, or has no boundary.
    """

    filename: str
    purpose: Purpose
    expires_after: int | None

    def __init__(self, content_type: bytes) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise errors.invalid_value("content-type", "a file is uploaded as multipart/form-data with a boundary")
        self._fields: dict[str, bytes] = {}
        self._file: list[bytes] = []
        self.pending = 0
        self._filename: str | None = None
        self._field: str | None = None
        self._in_file = False
        self._parts = 0
        self._header = b""
        self._disposition = b""
        self._complete = False
        self._header_name = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the form.

        Raises:
            ApiError: 400; this is no such form, or has too much in it besides the file.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(error) from None

    def take(self) -> bytes:
        """The bytes of the file that have come since the last time."""
        data = b"".join(self._file)
        self._file.clear()
        self.pending = 0
        return data

    def finish(self) -> None:
        """Look at the fields.

        Raises:
            ApiError: 400; the form is incomplete, or a field makes no sense.
        """
        if not self._complete:
            raise errors.invalid_value("body", "the form ends before its last boundary")
        if self._filename is None:
            raise errors.missing_field("file")
        self.filename = self._filename
        purpose = self._fields.get("purpose")
        self.purpose = check_purpose(None if purpose is None else purpose.decode(errors="replace"))
        self.expires_after = self._expiry()

    def _expiry(self) -> int | None:
        if "expires_after" in self._fields:
            raise errors.invalid_value("expires_after", "write it as expires_after[anchor] and expires_after[seconds]")
        said = {
            match[1]: value.decode(errors="replace")
            for name, value in self._fields.items()
            if (match := _EXPIRES.fullmatch(name))
        }
        if not said:
            return None
        try:
            expiry = msgspec.convert(said, ExpiresAfter, strict=False)
        except msgspec.ValidationError as error:
            found = errors.invalid_field(error)
            param = f"expires_after.{found.param}" if found.param else "expires_after"
            raise errors.invalid_value(param, f"{found.message.rstrip('.')}") from None
        expiry.check("expires_after")
        return expiry.seconds

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise errors.invalid_value("body", f"the form has more than {_MAX_PARTS} parts")
        self._field, self._in_file, self._disposition, self._header_name = None, False, b"", b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header
        self._header_name, self._header = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise errors.invalid_value("body", "a part of the form has no name")
        self._field = name.decode(errors="replace")
        filename = options.get(b"filename")
        if self._field != "file":
            self._fields[self._field] = b""
            return
        if filename is None:
            raise errors.invalid_value("file", "it must be sent as a file, which has a filename")
        if self._filename is not None:
            raise errors.invalid_value("file", "only one can be sent at a time")
        self._in_file = True
        self._filename = _base_name(filename.decode(errors="replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._file.append(data[start:end])
            self.pending += end - start
        elif self._field is not None:
            value = self._fields[self._field] + data[start:end]
            if len(value) > _MAX_FIELD:
                raise errors.invalid_value(self._field[:64], f"it has more than {_MAX_FIELD} bytes")
            self._fields[self._field] = value

    def _on_end(self) -> None:
        self._complete = True


def _base_name(filename: str) -> str:
    """A file's name without the folders that some clients send along, and without control characters."""
    name = re.split(r"[/\\]", filename)[-1]
    return "".join(char for char in name if char.isprintable())[:_MAX_NAME] or "upload"


def _malformed(error: FormParserError) -> errors.ApiError:
    return errors.invalid_value("body", f"it is no valid multipart/form-data: {error}")
