"""What does an answer consist of, beside text? Reasoning, content and tool calls, in the pieces that they arrive in."""

from abc import ABC, abstractmethod
from typing import NamedTuple


class Reasoning(NamedTuple):
    """More of what the model thinks before it answers."""

    text: str


class Content(NamedTuple):
    """More of the answer itself."""

    text: str


class ToolCallBegin(NamedTuple):
    """The model calls a tool: the ``index``-th call of this answer, from 0."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody wants of a call
    name: str


class ToolCallArguments(NamedTuple):
    """More of a call's arguments: the texts of one ``index`` together are a JSON object, if the model made no fault."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody wants of a call
    text: str


Part = Reasoning | Content | ToolCallBegin | ToolCallArguments


class AnswerParser(ABC):
    """Takes one answer apart, as it arrives. No marker of the model's own syntax ever gets into a part.

    Whatever way the text is cut into pieces, the parts together say the same. What was meant as a tool call and is none
    (broken JSON, no name) comes out as `Content`, so that nothing that the model wrote is lost.
    """

    __slots__ = ()

    @abstractmethod
    def push(self, text: str) -> list[Part]:
        """Take the next piece; return what is certain now. Texts in parts are never empty."""

    @abstractmethod
    def flush(self) -> list[Part]:
        """The rest, when no more text comes."""


class PlainParser(AnswerParser):
    """For models without a syntax of their own: everything is content."""

    __slots__ = ()

    def push(self, text: str) -> list[Part]:
        return [Content(text)] if text else []

    def flush(self) -> list[Part]:
        return []
