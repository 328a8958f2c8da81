"""What comes out of ``/v1/responses``? The response object, its events in a stream, and pages of its input."""

from typing import Any, Final, Literal

import msgspec

from gateway.wire.chat import TokenLogprob
from gateway.wire.errors import ApiError
from gateway.wire.generation import Usage
from gateway.wire.responses import ResponsesRequest, ToolChoice
from gateway.wire.responses_items import Item, OutputItem
from gateway.wire.sse import event

Status = Literal["in_progress", "completed", "incomplete", "failed"]

_encode: Final = msgspec.json.Encoder().encode


class InputTokensDetails(msgspec.Struct, frozen=True):
    """``cached_tokens`` were found in the prefix cache; what is written to it costs nothing, and isn't counted."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """``reasoning_tokens``: how many tokens went into thinking."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """How many tokens went in and came out."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "ResponseUsage":
        """A chat answer's usage in this endpoint's words."""
        details = usage.completion_tokens_details
        return cls(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(details.reasoning_tokens if details is not None else 0),
            usage.total_tokens,
        )


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed after its stream had begun."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str

    @classmethod
    def of(cls, error: ApiError) -> "ResponseError":
        """The error in the words that there are for it here."""
        if error.status == 429:
            return cls("rate_limit_exceeded", error.message)
        return cls("server_error" if error.status >= 500 else "invalid_prompt", error.message)


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response ends early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Format(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the answer's text had to look like."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | bool | None = None
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct, frozen=True):
    """How the answer's text had to be."""

    format: Format = Format(type="text")
    verbosity: str = "medium"


class Reasoning(msgspec.Struct, frozen=True):
    """How the model had to think; there are no summaries."""

    effort: str | None = None
    summary: None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model could call."""

    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A response, complete or under way. Times are Unix time in seconds; most fields repeat the request."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning: Reasoning = Reasoning()
    safety_identifier: str | None = None
    service_tier: Literal["default"] = "default"
    store: bool = True
    temperature: float
    text: Text = Text()
    tool_choice: str | ToolChoice = "auto"
    tools: list[FunctionTool] = []
    top_logprobs: int = 0
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None

    @classmethod
    def under_way(
        cls, request: ResponsesRequest, *, id: str, created: int, model: str, temperature: float, top_p: float
    ) -> "Response":
        """The response to ``request`` before anything has come; ``temperature`` and ``top_p`` are those in force."""
        asked = request.text.format if request.text is not None else None
        return cls(
            id=id,
            created_at=created,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            metadata=request.metadata or {},
            model=model,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            previous_response_id=request.previous_response_id,
            prompt_cache_key=request.prompt_cache_key,
            prompt_cache_retention=request.prompt_cache_retention,
            reasoning=Reasoning(request.reasoning.effort if request.reasoning is not None else None),
            safety_identifier=request.safety_identifier,
            store=request.store is not False,
            temperature=temperature,
            text=Text() if asked is None else Text(msgspec.convert(asked, Format, from_attributes=True)),
            tool_choice="auto" if request.tool_choice is None else request.tool_choice,
            tools=[
                FunctionTool(
                    name=tool.name or "",
                    description=tool.description,
                    parameters=tool.parameters,
                    strict=tool.strict,
                )
                for tool in request.tools or ()
            ],
            top_logprobs=request.top_logprobs or 0,
            top_p=top_p,
            user=request.user,
        )

    @property
    def body(self) -> bytes:
        return _encode(self)


class DeletedResponse(msgspec.Struct, frozen=True):
    """A response is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a response's input."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Events:
    """Makes the events of one stream, and numbers them."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def make(self, type: str, **fields: Any) -> bytes:
        """An event of ``type``, which is its name as well."""
        return (
            b"event: "
            + type.encode()
            + b"\n"
            + event(_encode({"type": type, **fields, "sequence_number": self.next()}))
        )

    def next(self) -> int:
        """The number of the next event."""
        number = self._next
        self._next += 1
        return number

    def error(self, error: ApiError) -> bytes:
        """The event that says why a stream breaks off."""
        return self.make("error", code=error.code, message=error.message, param=error.param)


class Deltas:
    """Makes the events of one ``type`` with which an item gets text: what they share is encoded once.

    That takes half the time of `Events.make` (2.5 µs instead of 5.2 on one core of a small cloud machine, a busy one).
    """

    __slots__ = ("_before", "_events", "_name")

    def __init__(self, events: Events, type: str, **fields: Any) -> None:
        self._events = events
        self._name = b"event: " + type.encode() + b"\n"
        self._before = _encode({"type": type, **fields, "delta": ""}).removesuffix(b'""}')

    def make(self, text: str, logprobs: list[TokenLogprob] | None = None) -> bytes:
        """There is more ``text``; where the events of this type have log-probabilities, those of its tokens."""
        found = b"" if logprobs is None else b'"logprobs":%b,' % _encode(logprobs)
        return self._name + event(
            b'%b%b,%b"sequence_number":%d}' % (self._before, _encode(text), found, self._events.next())
        )
