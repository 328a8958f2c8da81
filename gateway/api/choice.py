"""How do the tokens of one choice become what may be sent? Detokenise, look for stop strings, take apart, collect."""

from collections.abc import Sequence
from typing import NamedTuple

from engine.link import Output
from gateway.api.form import Answer, Delta, TokenScore, ToolCall
from gateway.api.scores import output_scores, prompt_scores
from gateway.api.surety import Surety
from gateway.text.parts import AnswerParser, Content, Part, Reasoning, ToolCallArguments, ToolCallBegin
from gateway.text.stops import StopStrings
from gateway.text.tokenizer import Tokenizer
from gateway.wire import errors
from gateway.wire.generation import FinishReason, GenerationRequest


class Reading(NamedTuple):
    """How the answers to one request are read.

    ``kept`` are special tokens that are part of the text all the same. ``parser`` takes an answer's text apart; without
    one there are no parts. With ``echo`` the prompt's text comes before the answer's.
    """

    tokenizer: Tokenizer
    request: GenerationRequest
    parser: AnswerParser | None = None
    kept: frozenset[int] = frozenset()
    echo: bool = False


class Choice:
    """One choice on its way. ``reason`` is set once it is complete, be it by the worker's word or by a stop string.

    ``mute``: only the prompt is wanted, and the token that the worker drew is dropped.
    """

    __slots__ = (
        "_calls",
        "_content",
        "_detokenizer",
        "_parser",
        "_reading",
        "_reasoning",
        "_scored",
        "_stops",
        "_texts",
        "answer",
        "cached",
        "completion_tokens",
        "mute",
        "prompt_text",
        "reason",
        "reasoning_tokens",
        "sketch",
        "started",
        "surety",
    )

    def __init__(
        self, index: int, prompt: Sequence[int], reading: Reading, *, prompt_text: str = "", mute: bool = False
    ) -> None:
        request = reading.request
        self._reading = reading
        self._detokenizer = reading.tokenizer.detokenizer(
            skip_special_tokens=request.skip_special_tokens is not False, kept=reading.kept
        )
        stops = request.stops
        self._stops = StopStrings(stops, include=bool(request.include_stop_str_in_output)) if stops else None
        self._parser = reading.parser
        self._scored = request.top_logprobs_wanted is not None or bool(request.return_token_ids)
        self._texts: list[str] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []
        self.answer = Answer(index, prompt, tool_calls=[], tokens=[])
        self.prompt_text = prompt_text
        self.mute = mute
        self.reason: FinishReason | None = None
        self.started = False
        self.completion_tokens = 0
        self.surety = Surety()
        self.reasoning_tokens: int | None = None
        self.cached = 0
        self.sketch = b""

    def complete(self) -> bool:
        """Whether `reason` is set."""
        return self.reason is not None

    def resume(self, answer: Sequence[int]) -> None:
        """Take the beginning of the answer, which its reader has already: it counts, and its text isn't sent again.

        Raises:
            ApiError: 400, a stop string has ended it.
        """
        text = self._detokenizer.push(answer)
        if self._stops is not None:
            self._stops.push(text)
            if self._stops.matched is not None:
                raise errors.invalid_value("answered", "the answer so far has ended, with a stop string")
        self.completion_tokens = len(answer)

    def push(self, output: Output) -> Delta:
        """What ``output`` brought, after which `reason` may be set; then nothing more is to come."""
        text, tokens = "", list[TokenScore]()
        if not self.started:
            text, tokens = self._start(output)
        if self.mute:
            self.reason = "length"
        else:
            self.completion_tokens += len(output.tokens)
            self.surety.add(output)
            if self._scored:
                tokens = [*tokens, *output_scores(output)]
            text += self._text(output)
        parts = None if self._parser is None else self._take_apart(self._parser, text)
        if text:
            self._texts.append(text)
        if tokens:
            self.answer.tokens.extend(tokens)
        if self.reason is not None:
            self._complete(self.reason)
        return Delta(text, parts, tokens, self.completion_tokens)

    def _start(self, output: Output) -> tuple[str, list[TokenScore]]:
        """What comes before the answer: the prompt, where an echo was asked for."""
        self.started = True
        self.cached = output.cached
        self.sketch = output.sketch
        answer = self.answer
        if output.prompt is not None:
            answer.prompt_scores = prompt_scores(answer.prompt, output.prompt)
        return (self.prompt_text, list(answer.prompt_scores)) if self._reading.echo else ("", [])

    def _text(self, output: Output) -> str:
        """The text that ``output`` made certain."""
        text = self._detokenizer.push(output.tokens)
        if output.finish is not None:
            text += self._detokenizer.flush()
            self.reason = output.finish
        stops = self._stops
        if stops is not None:
            text = stops.push(text)
            if stops.matched is None and self.reason is not None:
                text += stops.flush()
            if stops.matched is not None:
                self.reason = "stop"
                self.answer.stop_string = stops.matched
        return text

    def _take_apart(self, parser: AnswerParser, text: str) -> list[Part]:
        parts = parser.push(text)
        if self.reason is not None:
            parts += parser.flush()
        for part in parts:
            match part:
                case Content():
                    self._content.append(part.text)
                case Reasoning():
                    self._reasoning.append(part.text)
                case ToolCallBegin():
                    self._calls.append((part.name, []))
                case ToolCallArguments():
                    self._calls[part.index][1].append(part.text)
            if self.reasoning_tokens is None and self._reasoning and not isinstance(part, Reasoning):
                self.reasoning_tokens = self.completion_tokens - 1  # the token that came last is what this part is of
        return parts

    def _complete(self, reason: FinishReason) -> None:
        answer = self.answer
        answer.text = "".join(self._texts)
        answer.content = answer.text if self._parser is None else "".join(self._content)
        answer.reasoning = "".join(self._reasoning)
        answer.tool_calls = [ToolCall(name, "".join(texts)) for name, texts in self._calls]
        answer.reason = self.reason = "tool_calls" if self._calls and reason == "stop" else reason
        if self._reasoning and self.reasoning_tokens is None:
            self.reasoning_tokens = self.completion_tokens
