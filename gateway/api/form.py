"""How does an endpoint write an answer? What `gateway.api.generation` tells it, and what it makes of that.

One engine step brings each choice one `Delta`. A `Form` turns deltas into server-sent events, or the collected
`Answer`s into one body; it is made for one request and knows nothing of workers, tokens or clients that leave.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from gateway.text.parts import Part
from gateway.wire.errors import ApiError
from gateway.wire.generation import FinishReason, Usage


class TokenScore(NamedTuple):
    """A token and how likely the model found it, in nats; ``top`` are the likeliest at its place, likeliest first.

    ``rank`` counts from 1 and is known for tokens of a prompt only; 0 otherwise. A prompt's first token, for which
    there is no prediction, has the log-probability NaN.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


class Delta(NamedTuple):
    """What one step brought one choice.

    ``parts`` is the text taken apart, for endpoints that asked for it; None for others, who find ``text``. ``tokens``
    are those of this step, where log-probabilities or token ids were asked for: their text may come later than they do,
    while a character or a stop string is incomplete. ``completion_tokens`` counts those of this choice so far.
    """

    text: str
    parts: Sequence[Part] | None = None
    tokens: Sequence[TokenScore] = ()
    completion_tokens: int = 0


class ToolCall(msgspec.Struct, frozen=True):
    """A whole call; ``arguments`` is the JSON that the model wrote, unchecked."""

    name: str
    arguments: str


class Answer(msgspec.Struct):
    """One choice, complete. ``prompt`` and ``prompt_scores`` are those of its prompt, the latter where asked for.

    ``tokens`` are those of ``text``, where they were asked for: with an echo the prompt's first.
    ``reason`` is "tool_calls" where the model called any. ``stop_string`` is the stop string that ended it.
    """

    index: int
    prompt: Sequence[int]
    text: str = ""
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    tokens: list[TokenScore] = []
    prompt_scores: Sequence[TokenScore] = ()
    reason: FinishReason = "stop"
    stop_string: str | None = None


class Form(Protocol):
    """How one endpoint writes the answers to one request. Every method returns complete events, or no bytes at all."""

    def begin(self, usage: Usage, prompts: Sequence[Sequence[int]] = ()) -> bytes:
        """The events before the first delta, once the first token has come.

        ``usage`` is that of the prompt alone; ``prompts`` has the token ids of each choice's prompt.
        """

    def delta(self, index: int, delta: Delta) -> bytes:
        """More of choice ``index``. May be called with a delta that has nothing to show."""

    def finish(self, answer: Answer) -> bytes:
        """A choice is complete."""

    def end(self, usage: Usage) -> bytes:
        """The events after all choices have finished, the stream's terminator included."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        """The body of an answer that isn't streamed."""

    def fault(self, error: ApiError) -> bytes:
        """The events with which a stream ends that has broken."""
