"""How is a chat answer written? As one chat completion, or as its chunks."""

import time
from collections.abc import Sequence

import msgspec

from gateway.api.form import Answer, Delta, TokenScore
from gateway.api.generation import answer_id
from gateway.api.scores import TokenNames
from gateway.text.parts import Content, Part, Reasoning, ToolCallArguments, ToolCallBegin
from gateway.text.tokenizer import Tokenizer
from gateway.wire import chat
from gateway.wire.chat import AnswerToolCall, CalledFunction, ChatCompletionRequest, ToolCallDelta
from gateway.wire.errors import ApiError
from gateway.wire.generation import Usage
from gateway.wire.sse import DONE, ChatStream, error_event

_encode = msgspec.json.Encoder().encode


class ChatForm:
    """Writes the answers to one chat request."""

    def __init__(self, request: ChatCompletionRequest, model: str, tokenizer: Tokenizer) -> None:
        self._request = request
        self._names = TokenNames(tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._id, self._created, self._model = answer_id("chatcmpl-"), int(time.time()), model
        self._tier = "default" if request.service_tier is not None else msgspec.UNSET
        self._events = ChatStream(
            self._id, self._created, model, include_usage=request.include_usage, service_tier=self._tier
        )
        self._reasoning = request.include_reasoning is not False
        # A chunk of nothing but text is written without a struct, unless it has to say more.
        self._plain = not (request.continuous_usage or request.return_token_ids or request.logprobs)
        self._prompt: Usage | None = None
        self._counts: dict[int, int] = {}

    def begin(self, usage: Usage, prompts: Sequence[Sequence[int]] = ()) -> bytes:
        self._prompt = usage
        if self._request.return_token_ids and prompts:
            role = chat.Delta(role="assistant", content="")
            return b"".join(
                self._events.event(chat.ChunkChoice(index, role), prompt_token_ids=list(prompt))
                for index, prompt in enumerate(prompts)
            )
        return b"".join(self._events.role(index) for index in range(self._request.n or 1))

    def delta(self, index: int, delta: Delta) -> bytes:
        if not self._plain:
            self._counts[index] = delta.completion_tokens
        parts = delta.parts
        if parts is None:
            text = delta.text
        elif not parts:
            text = ""
        elif len(parts) == 1 and isinstance(parts[0], Content):
            text = parts[0].text
        else:
            return self._parts(index, delta)
        if self._plain:
            return self._events.text(text, index) if text else b""
        return self._event(index, chat.Delta(content=text), delta) if text or delta.tokens else b""

    def finish(self, answer: Answer) -> bytes:
        stop = msgspec.UNSET if answer.stop_string is None else answer.stop_string
        choice = chat.ChunkChoice(answer.index, chat.Delta(), answer.reason, stop_reason=stop)
        return self._events.event(choice, **self._usage_so_far())

    def end(self, usage: Usage) -> bytes:
        return (self._events.usage(usage) if self._request.include_usage else b"") + DONE

    def whole(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        request, first = self._request, answers[0]
        return _encode(
            chat.ChatCompletion(
                self._id,
                self._created,
                self._model,
                [self._choice(answer) for answer in answers],
                usage,
                service_tier=self._tier,
                prompt_logprobs=msgspec.UNSET
                if request.prompt_logprobs is None
                else self._names.prompt(first.prompt_scores),
                prompt_token_ids=list(first.prompt) if request.return_token_ids else msgspec.UNSET,
            )
        )

    def fault(self, error: ApiError) -> bytes:
        return error_event(error)

    def _choice(self, answer: Answer) -> chat.ChatChoice:
        calls = [
            AnswerToolCall(answer_id("call_"), CalledFunction(call.name, call.arguments)) for call in answer.tool_calls
        ]
        message = chat.AnswerMessage(
            None if calls and not answer.content else answer.content,
            reasoning_content=answer.reasoning if answer.reasoning and self._reasoning else msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )
        return chat.ChatChoice(
            answer.index,
            message,
            answer.reason,
            logprobs=self._names.chat(answer.tokens) if self._request.logprobs else None,
            stop_reason=msgspec.UNSET if answer.stop_string is None else answer.stop_string,
            token_ids=[token.id for token in answer.tokens] if self._request.return_token_ids else msgspec.UNSET,
        )

    def _parts(self, index: int, delta: Delta) -> bytes:
        """The events of a delta's parts, one each; what goes with the tokens goes with the first."""
        events, rest = b"", delta
        for part in delta.parts or ():
            if isinstance(part, Reasoning) and not self._reasoning:
                continue
            events += self._event(index, _wire(part), rest)
            rest = delta._replace(tokens=())
        return events

    def _event(self, index: int, message: chat.Delta, delta: Delta) -> bytes:
        request, tokens = self._request, delta.tokens
        choice = chat.ChunkChoice(
            index,
            message,
            logprobs=self._names.chat(tokens) if request.logprobs and tokens else None,
            token_ids=_ids(tokens) if request.return_token_ids else msgspec.UNSET,
        )
        return self._events.event(choice, **self._usage_so_far())

    def _usage_so_far(self) -> dict[str, Usage]:
        """The chunk's ``usage``, where every chunk is to have one."""
        if not self._request.continuous_usage or self._prompt is None:
            return {}
        prompt = self._prompt
        return {
            "usage": Usage.of(
                prompt=prompt.prompt_tokens,
                completion=sum(self._counts.values()),
                cached=prompt.prompt_tokens_details.cached_tokens,
            )
        }


def _ids(tokens: Sequence[TokenScore]) -> list[int]:
    return [token.id for token in tokens]


def _wire(part: Part) -> chat.Delta:
    match part:
        case Content():
            return chat.Delta(content=part.text)
        case Reasoning():
            return chat.Delta(reasoning_content=part.text)
        case ToolCallBegin():
            function = CalledFunction(part.name, "")
            return chat.Delta(
                tool_calls=[ToolCallDelta(part.index, answer_id("call_"), type="function", function=function)]
            )
        case ToolCallArguments():
            return chat.Delta(tool_calls=[ToolCallDelta(part.index, function=CalledFunction(arguments=part.text))])
