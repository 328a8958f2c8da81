"""How does ``/v1/responses`` write an answer? As items, whole or growing: each opens, gets its text, and is done."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec.structs import replace

from gateway.api.form import Answer, Delta, TokenScore
from gateway.text import parts
from gateway.wire.chat import TokenLogprob
from gateway.wire.errors import ApiError
from gateway.wire.generation import FinishReason, Usage
from gateway.wire.responses_answer import Deltas, Events, IncompleteDetails, Response, ResponseError, ResponseUsage
from gateway.wire.responses_items import (
    FunctionCall,
    ItemStatus,
    Message,
    OutputItem,
    OutputText,
    Reasoning,
    ReasoningText,
    new_id,
)

_TERMINAL: Final = {"completed": "response.completed", "incomplete": "response.incomplete"}


class ResponseForm:
    """Writes one response.

    Args:
        response: what is known of it before anything has come.
        keep: is given the response once it is complete.
        describe: makes of tokens' scores what clients read; None where log-probabilities weren't asked for.
    """

    def __init__(
        self,
        response: Response,
        *,
        keep: Callable[[Response], None],
        describe: Callable[[Sequence[TokenScore]], list[TokenLogprob]] | None = None,
    ) -> None:
        self._response = response
        self._keep = keep
        self._describe = describe
        self._events = Events()
        self._output: list[OutputItem] = []
        self._open: _OpenItem | None = None
        self._scores: list[TokenScore] = []  # of tokens whose text hasn't come yet
        self._reason: FinishReason = "stop"

    def begin(self, usage: Usage, prompts: Sequence[Sequence[int]] = ()) -> bytes:
        return self._events.make("response.created", response=self._response) + self._events.make(
            "response.in_progress", response=self._response
        )

    def delta(self, index: int, delta: Delta) -> bytes:
        if self._describe is not None:
            self._scores += delta.tokens
        events = b""
        for part in delta.parts or ():
            match part:
                case parts.Reasoning(text):
                    events += self._enter(_OpenReasoning) + self._grow(text)
                case parts.Content(text):
                    if not isinstance(self._open, _OpenMessage):
                        if self._open is not None:
                            self._scores = list(delta.tokens)  # what came before belongs to another item
                        events += self._enter(_OpenMessage)
                    events += self._grow(text)
                case parts.ToolCallBegin(_, name):
                    events += self._close() + self._begin(_OpenCall(self._events, len(self._output), name))
                case parts.ToolCallArguments(_, text):
                    events += self._grow(text)
        return events

    def finish(self, answer: Answer) -> bytes:
        self._reason = answer.reason
        events = b""
        if self._open is None and not self._output:  # nothing at all: a message that says nothing
            events = self._enter(_OpenMessage)
        return events + self._close("incomplete" if answer.reason == "length" else "completed")

    def end(self, usage: Usage) -> bytes:
        response = self._complete(self._output, self._reason, usage)
        return self._events.make(_TERMINAL[response.status], response=response)

    def whole(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        (answer,) = answers
        output = _items(answer, _message_logprobs(answer, self._logprobs(answer.tokens)))
        return self._complete(output, answer.reason, usage).body

    def fault(self, error: ApiError) -> bytes:
        events = self._close("incomplete")
        failed = replace(self._response, status="failed", error=ResponseError.of(error), output=self._output)
        return events + self._events.error(error) + self._events.make("response.failed", response=failed)

    def _complete(self, output: list[OutputItem], reason: FinishReason, usage: Usage) -> Response:
        """The complete response, which is kept from now on."""
        early = reason == "length"
        response = replace(
            self._response,
            status="incomplete" if early else "completed",
            completed_at=None if early else int(time.time()),
            incomplete_details=IncompleteDetails() if early else None,
            output=output,
            usage=ResponseUsage.of(usage),
        )
        self._keep(response)
        return response

    def _enter(self, kind: "type[_OpenMessage] | type[_OpenReasoning]") -> bytes:
        """Begin an item of this kind, unless it is one that is open."""
        if isinstance(self._open, kind):
            return b""
        return self._close() + self._begin(kind(self._events, len(self._output)))

    def _begin(self, item: "_OpenItem") -> bytes:
        self._open = item
        return item.begin()

    def _grow(self, text: str) -> bytes:
        assert self._open is not None, "a text comes after its item has begun"
        if self._describe is None:
            return self._open.grow(text, [])
        scores, self._scores = self._scores, []
        return self._open.grow(text, self._describe(scores))

    def _close(self, status: ItemStatus = "completed") -> bytes:
        if self._open is None:
            return b""
        events, item = self._open.close(status)
        self._output.append(item)
        self._open = None
        return events

    def _logprobs(self, scores: Sequence[TokenScore]) -> list[TokenLogprob]:
        return [] if self._describe is None else self._describe(scores)


def _items(answer: Answer, logprobs: list[TokenLogprob]) -> list[OutputItem]:
    """A whole answer as items."""
    items: list[OutputItem] = []
    if answer.reasoning:
        items.append(Reasoning(id=new_id("rs"), content=[ReasoningText(answer.reasoning)]))
    if answer.content or not (answer.reasoning or answer.tool_calls):
        items.append(
            Message(id=new_id("msg"), role="assistant", content=[OutputText(answer.content, logprobs=logprobs)])
        )
    items += [
        FunctionCall(id=new_id("fc"), call_id=new_id("call"), name=call.name, arguments=call.arguments)
        for call in answer.tool_calls
    ]
    if answer.reason == "length":
        items[-1] = replace(items[-1], status="incomplete")
    return items


def _message_logprobs(answer: Answer, logprobs: list[TokenLogprob]) -> list[TokenLogprob]:
    """Those of the tokens that an answer's message consists of: neither of its reasoning nor of its calls."""
    start = answer.text.rfind(answer.content)
    if answer.content == answer.text or start < 0:  # all, or too scattered to be told apart
        return logprobs
    first = len(answer.text[:start].encode())
    last = first + len(answer.content.encode())
    found: list[TokenLogprob] = []
    at = 0
    for logprob in logprobs:
        end = at + len(logprob.bytes or ())
        if end > first and at < last:
            found.append(logprob)
        at = end
    return found


class _OpenItem(ABC):
    """An item under way in a stream. Each method returns the events that say what happened."""

    prefix: str

    def __init__(self, events: Events, output_index: int) -> None:
        self._events = events
        self._texts: list[str] = []
        self._id = new_id(self.prefix)
        self._output_index = output_index

    @abstractmethod
    def begin(self) -> bytes:
        """The item is there, and empty."""

    @abstractmethod
    def grow(self, text: str, logprobs: list[TokenLogprob]) -> bytes:
        """It has more text."""

    @abstractmethod
    def close(self, status: ItemStatus) -> tuple[bytes, OutputItem]:
        """It is done; returns it as well."""

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    def _item_event(self, type: str, item: OutputItem) -> bytes:
        return self._events.make(type, output_index=self._output_index, item=item)

    def _place(self) -> dict[str, Any]:
        """Where in the response the item's text is: in the only part of its content, unless it is a call."""
        return {"item_id": self._id, "output_index": self._output_index, "content_index": 0}

    def _part_event(self, type: str, **fields: object) -> bytes:
        """An event about that part."""
        return self._events.make(type, **self._place(), **fields)


class _OpenMessage(_OpenItem):
    """A message with one text."""

    prefix = "msg"

    def __init__(self, events: Events, output_index: int) -> None:
        super().__init__(events, output_index)
        self._logprobs: list[TokenLogprob] = []
        self._deltas = Deltas(events, "response.output_text.delta", **self._place())

    def begin(self) -> bytes:
        item = Message(id=self._id, role="assistant", content=[], status="in_progress")
        return self._item_event("response.output_item.added", item) + self._part_event(
            "response.content_part.added", part=OutputText("")
        )

    def grow(self, text: str, logprobs: list[TokenLogprob]) -> bytes:
        self._texts.append(text)
        self._logprobs += logprobs
        return self._deltas.make(text, logprobs)

    def close(self, status: ItemStatus) -> tuple[bytes, OutputItem]:
        part = OutputText(self._text, logprobs=self._logprobs)
        item = Message(id=self._id, role="assistant", content=[part], status=status)
        events = self._part_event("response.output_text.done", text=part.text, logprobs=part.logprobs)
        events += self._part_event("response.content_part.done", part=part)
        return events + self._item_event("response.output_item.done", item), item


class _OpenReasoning(_OpenItem):
    """A thought."""

    prefix = "rs"

    def __init__(self, events: Events, output_index: int) -> None:
        super().__init__(events, output_index)
        self._deltas = Deltas(events, "response.reasoning_text.delta", **self._place())

    def begin(self) -> bytes:
        return self._item_event(
            "response.output_item.added", Reasoning(id=self._id, status="in_progress")
        ) + self._part_event("response.content_part.added", part=ReasoningText(""))

    def grow(self, text: str, logprobs: list[TokenLogprob]) -> bytes:
        self._texts.append(text)
        return self._deltas.make(text)

    def close(self, status: ItemStatus) -> tuple[bytes, OutputItem]:
        part = ReasoningText(self._text)
        item = Reasoning(id=self._id, content=[part], status=status)
        events = self._part_event("response.reasoning_text.done", text=part.text)
        events += self._part_event("response.content_part.done", part=part)
        return events + self._item_event("response.output_item.done", item), item


class _OpenCall(_OpenItem):
    """A call of the function ``name``."""

    prefix = "fc"

    def __init__(self, events: Events, output_index: int, name: str) -> None:
        super().__init__(events, output_index)
        self._name = name
        self._call_id = new_id("call")
        self._deltas = Deltas(events, "response.function_call_arguments.delta", **self._place())

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._output_index}

    def _item(self, status: ItemStatus) -> FunctionCall:
        return FunctionCall(id=self._id, call_id=self._call_id, name=self._name, arguments=self._text, status=status)

    def begin(self) -> bytes:
        return self._item_event("response.output_item.added", self._item("in_progress"))

    def grow(self, text: str, logprobs: list[TokenLogprob]) -> bytes:
        self._texts.append(text)
        return self._deltas.make(text)

    def close(self, status: ItemStatus) -> tuple[bytes, OutputItem]:
        item = self._item(status)
        events = self._events.make(
            "response.function_call_arguments.done", **self._place(), name=self._name, arguments=item.arguments
        )
        return events + self._item_event("response.output_item.done", item), item
