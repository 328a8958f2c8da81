"""Which forms of tool calls are there, and what follows the marker of each?"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.text.calls import CallReader
from gateway.text.reader import Reading

_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]*")


class ToolForm(NamedTuple):
    """How calls are written. ``calls`` reads them once ``markers[0]`` has been passed.

    ``markers`` are those that may stand in the text, ``tokens`` all that may be tokens of their own. ``bare`` reads
    calls without any marker, at an answer's beginning.
    """

    markers: tuple[str, ...]
    tokens: tuple[str, ...]
    calls: Callable[[CallReader], Reading[None]]
    bare: Callable[[CallReader], Reading[None]] | None = None


def _hermes(calls: CallReader) -> Reading[None]:
    reader = calls.reader
    reader.kept = reader.at
    if (yield from reader.skip_space()) != "{":
        reader.rewind()
    elif (yield from calls.object(strict=False)):
        reader.kept = reader.at
        yield from reader.skip_space()
        if not (yield from reader.literal("</tool_call>")):
            reader.rewind()
        reader.kept = None


def _llama3(calls: CallReader) -> Reading[None]:
    yield from _series(calls, strict=False)


def _llama3_bare(calls: CallReader) -> Reading[None]:
    yield from _series(calls, strict=True)


def _series(calls: CallReader, strict: bool) -> Reading[None]:
    """Calls with ``;`` between them, or only white space. The first one may be strict, those after it are."""
    reader = calls.reader
    reader.kept = reader.at
    char = yield from reader.skip_space()
    while char == "{" and (yield from calls.object(strict)):
        strict = True
        reader.kept = reader.at
        char = yield from reader.skip_space()
        if char == ";":
            reader.at += 1
            char = yield from reader.skip_space()
            if not char:  # a separator with nothing to separate
                reader.kept = None
    reader.rewind()


def _mistral(calls: CallReader) -> Reading[None]:
    reader = calls.reader
    reader.kept = reader.at
    char = yield from reader.skip_space()
    if char == "{":
        yield from calls.object(strict=False)
    elif char == "[":
        yield from _array(calls)
    else:
        yield from _named(calls)


def _array(calls: CallReader) -> Reading[None]:
    """``[{…}, {…}]``: at each bracket or comma, a call follows or it is over."""
    reader = calls.reader
    while True:
        reader.at += 1
        if (yield from reader.skip_space()) != "{":
            reader.rewind()
            return
        if not (yield from calls.object(strict=False)):
            return
        reader.kept = reader.at
        char = yield from reader.skip_space()
        if char == "]":
            reader.at += 1
            reader.kept = None
        if char != ",":
            reader.rewind()
            return


def _named(calls: CallReader) -> Reading[None]:
    """``name[ARGS]{…}``, perhaps with ``[CALL_ID]…`` before ``[ARGS]``, which some versions leave out."""
    reader = calls.reader
    assert reader.kept is not None
    start = reader.at - reader.kept
    yield from reader.skip(_NAME)
    name = reader.text[reader.kept + start : reader.at]
    yield from reader.skip_space()
    if (yield from reader.literal("[CALL_ID]")):
        yield from reader.skip_space()
        yield from reader.skip(_NAME)
        yield from reader.skip_space()
    if (yield from reader.literal("[ARGS]")):
        yield from reader.skip_space()
    if name and (yield from reader.peek()) == "{":
        yield from calls.arguments_of(name)
    else:
        reader.rewind()


TOOL_FORMS: Final = {
    "hermes": ToolForm(("<tool_call>", "</tool_call>"), ("<tool_call>", "</tool_call>"), _hermes),
    "llama3": ToolForm(("<|python_tag|>",), ("<|python_tag|>",), _llama3, _llama3_bare),
    "mistral": ToolForm(("[TOOL_CALLS]",), ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"), _mistral),
}
