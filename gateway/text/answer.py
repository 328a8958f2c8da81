"""How is an answer taken apart in which reasoning, content and tool calls are marked?"""

import re
from typing import Final

from gateway.text.calls import CallReader
from gateway.text.parts import AnswerParser, Content, Part, Reasoning
from gateway.text.reader import Reading
from gateway.text.tool_forms import ToolForm

SPACE: Final = " \t\r\n"


class MarkedParser(AnswerParser):
    """Takes apart what a model writes in the form of ``tools`` and between the two markers of ``thinking``.

    White space beside markers belongs to them and not to reasoning or content; that of an answer without markers stays
    as it is. A closing marker without its opening one is left out.
    """

    __slots__ = ("_calls", "_content", "_markers", "_of_marker", "_parts", "_reader", "_reading", "_space", "_thought")

    def __init__(self, tools: ToolForm | None, thinking: tuple[str, str] | None, in_reasoning: bool) -> None:
        self._parts: list[Part] = []
        self._markers = (thinking or ()) + (tools.markers if tools else ())
        self._of_marker = re.compile("|".join(map(re.escape, self._markers)))
        self._calls = CallReader(self._parts, self._add_content, self._markers, self._of_marker)
        self._reader = self._calls.reader
        self._thought = False  # there was a marker of reasoning
        self._content = False  # there was content
        self._space = ""  # white space that may turn out to be beside a marker
        self._reading = self._answer(tools, thinking, in_reasoning)
        next(self._reading)

    def push(self, text: str) -> list[Part]:
        self._reader.feed(text)
        next(self._reading, None)
        return self._take()

    def flush(self) -> list[Part]:
        self._reader.ended = True
        next(self._reading, None)
        return self._take()

    def _take(self) -> list[Part]:
        taken = self._parts.copy()
        self._parts.clear()
        return taken

    def _answer(self, tools: ToolForm | None, thinking: tuple[str, str] | None, in_reasoning: bool) -> Reading[None]:
        if thinking and in_reasoning:
            yield from self._think(thinking)
        while True:
            if tools and tools.bare and not self._content:
                yield from tools.bare(self._calls)
            marker = yield from self._reader.until(self._markers, self._of_marker, self._add_content)
            if not marker:
                break
            calls = self._calls.count
            if thinking and marker in thinking:
                self._thought = True
                if marker == thinking[0]:
                    yield from self._think(thinking)
            elif tools and marker == tools.markers[0]:
                yield from tools.calls(self._calls)
            if self._calls.count > calls:
                self._space = ""
        if self._space and not self._calls.count and (self._content or not self._thought):
            self._parts.append(Content(self._space))

    def _think(self, thinking: tuple[str, str]) -> Reading[None]:
        """Everything to the closing marker is reasoning, but for markers, and the white space at both ends."""
        self._thought = True
        held = ""
        started = False

        def add(text: str) -> None:
            nonlocal held, started
            text = held + text if started else text.lstrip(SPACE)
            kept = text.rstrip(SPACE)
            held = text[len(kept) :]
            if kept:
                started = True
                self._parts.append(Reasoning(kept))

        while (yield from self._reader.until(self._markers, self._of_marker, add)) not in ("", thinking[1]):
            pass

    def _add_content(self, text: str) -> None:
        text = self._space + text
        kept = text.rstrip(SPACE)
        self._space = text[len(kept) :]
        if not self._content and (self._thought or self._calls.count):
            kept = kept.lstrip(SPACE)
        if kept:
            self._content = True
            self._parts.append(Content(kept))
