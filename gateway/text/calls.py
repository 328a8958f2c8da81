"""How is one tool call read while the model still writes it? Its name once that is complete, its arguments at once."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Final

from gateway.text.parts import Part, ToolCallArguments, ToolCallBegin
from gateway.text.reader import Reader, Reading

ARGUMENTS: Final = ("arguments", "parameters")
"""Under which key the arguments may be: models mix up the two forms."""

_IN_STRING: Final = re.compile(r'[^"\\]*')
_BETWEEN: Final = re.compile(r"[ \t\r\n,:0-9.+\-Etrufalsen]*")
"""What JSON has outside of strings and brackets: white space, separators, numbers, ``true``, ``false``, ``null``."""
_SCALAR: Final = re.compile(r"[0-9.+\-Etrufalsen]*")
_CLOSING: Final = {"{": "}", "[": "]"}


class _Broken(Exception):
    """This is no JSON, or not that of a call."""


class CallReader:
    """Reads calls from its ``reader``, counts them and adds what they come to to ``parts``.

    Arguments are passed on as the model wrote them, as they come, and only brackets and strings are followed; a fault
    in them leaves them as they are, up to the next of ``markers``. What turns out to be no call before its name and
    the beginning of its arguments are there goes to ``content``: set ``reader.kept`` to where that begins first.
    """

    __slots__ = ("_content", "_markers", "_of_marker", "_parts", "count", "reader")

    def __init__(
        self,
        parts: list[Part],
        content: Callable[[str], None],
        markers: Sequence[str],
        of_marker: re.Pattern[str],
    ) -> None:
        self.reader = Reader(self._arguments)
        self.count = 0
        self._parts = parts
        self._content = content
        self._markers = markers
        self._of_marker = of_marker

    def object(self, strict: bool) -> Reading[bool]:
        """Read ``{"name": …, "arguments": {…}}``. False: it is none, and has become content.

        With ``strict`` it must have arguments, and nothing that a call has not: there was no marker before it.
        """
        begun = self.count
        try:
            yield from self._object(strict)
        except _Broken:
            if self.count == begun:
                self._give_back()
                return False
            yield from self._rest()
        return True

    def arguments_of(self, name: str) -> Reading[None]:
        """Read the arguments, an object, of a call whose name is known."""
        self._begin(name)
        try:
            yield from self._stream()
        except _Broken:
            yield from self._rest()

    def _object(self, strict: bool) -> Reading[None]:
        reader, before = self.reader, self.count
        name, arguments = "", ""
        reader.at += 1
        char = yield from reader.skip_space()
        while char != "}":
            key = yield from self._string()
            if (yield from reader.skip_space()) != ":":
                raise _Broken
            reader.at += 1
            char = yield from reader.skip_space()
            if self.count > before:
                yield from self._value()
            elif key == "name":
                name = yield from self._string()
            elif key in ARGUMENTS and char == "{" and name:
                self._begin(name)
                yield from self._stream()
            elif key in ARGUMENTS:
                arguments = yield from self._whole_arguments(char)
            elif strict and key not in ("type", "id"):
                raise _Broken
            else:
                yield from self._value()
            if name and arguments and self.count == before:
                self._begin(name)
                self._arguments(arguments)
            char = yield from reader.skip_space()
            if char == ",":
                reader.at += 1
                char = yield from reader.skip_space()
            elif char != "}":
                raise _Broken
        reader.at += 1
        if self.count == before:
            if strict or not name:
                raise _Broken
            self._begin(name)
            self._arguments("{}")

    def _give_back(self) -> None:
        """What was read since ``reader.kept`` is content, but for markers in it."""
        reader = self.reader
        assert reader.kept is not None
        text = reader.text[reader.kept : reader.at]
        reader.kept = None
        self._content(self._of_marker.sub("", text))

    def _begin(self, name: str) -> None:
        self.reader.kept = None
        self._parts.append(ToolCallBegin(self.count, name))
        self.count += 1

    def _arguments(self, text: str) -> None:
        self._parts.append(ToolCallArguments(self.count - 1, text))

    def _stream(self) -> Reading[None]:
        """Pass on a value as it comes. ``reader.sent`` stays set if it breaks."""
        self.reader.sent = self.reader.at
        yield from self._value()
        self.reader.pass_on()
        self.reader.sent = None

    def _rest(self) -> Reading[None]:
        """After a fault: arguments go on to the next marker, which is left; what follows them isn't a call's."""
        if self.reader.sent is None:
            return
        self.reader.pass_on()
        self.reader.sent = None
        marker = yield from self.reader.until(self._markers, self._of_marker, self._arguments)
        self.reader.at -= len(marker)

    def _whole_arguments(self, first: str) -> Reading[str]:
        """Arguments that can't be passed on yet: the name is still to come, or they are JSON within a string."""
        raw = yield from self._raw()
        if first == "{":
            return raw
        if raw == "null":
            return "{}"
        text = _decoded(raw)
        try:
            if isinstance(json.loads(text), dict):
                return text
        except (ValueError, RecursionError):
            pass
        raise _Broken

    def _string(self) -> Reading[str]:
        """Read a string. Its text only as long as no call has begun: it is empty later."""
        if (yield from self.reader.peek()) != '"':
            raise _Broken
        if self.reader.kept is None:
            yield from self._pass_string()
            return ""
        return _decoded((yield from self._raw()))

    def _raw(self) -> Reading[str]:
        """Read a value; as it is written."""
        reader = self.reader
        assert reader.kept is not None
        start = reader.at - reader.kept
        yield from self._value()
        return reader.text[reader.kept + start : reader.at]

    def _value(self) -> Reading[None]:
        """Pass a value: brackets and strings are followed, the rest is believed."""
        reader = self.reader
        char = yield from reader.peek()
        if char == '"':
            yield from self._pass_string()
        elif char in ("{", "["):
            yield from self._pass_brackets()
        elif char and _SCALAR.fullmatch(char):
            yield from reader.skip(_SCALAR)
        else:
            raise _Broken

    def _pass_brackets(self) -> Reading[None]:
        reader = self.reader
        open_: list[str] = []
        while True:
            char = yield from reader.peek()
            if char == '"':
                yield from self._pass_string()
                continue
            if char in _CLOSING:
                for marker in self._markers:
                    if marker[0] == char and (yield from reader.ahead(marker)):
                        raise _Broken
                open_.append(_CLOSING[char])
                reader.at += 1
            elif char and open_[-1] == char:
                open_.pop()
                reader.at += 1
                if not open_:
                    return
            elif char and _BETWEEN.fullmatch(char):
                yield from reader.skip(_BETWEEN)
            else:
                raise _Broken

    def _pass_string(self) -> Reading[None]:
        reader = self.reader
        reader.at += 1
        while True:
            yield from reader.skip(_IN_STRING)
            char = yield from reader.peek()
            if char == "\\":  # whatever follows it, it doesn't end the string
                reader.at += 1
                char = "" if (yield from reader.peek()) == "" else "\\"
            if not char:
                raise _Broken
            reader.at += 1
            if char == '"':
                return


def _decoded(raw: str) -> str:
    """The text of a JSON string, in which control characters may stand as they are."""
    try:
        text = json.loads(raw, strict=False)
        if isinstance(text, str):
            text.encode()  # half a surrogate pair can't be sent
            return text
    except (ValueError, RecursionError):
        pass
    raise _Broken
