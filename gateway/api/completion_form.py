"""How is a completion written? As one body with a choice for each prompt and ``n``, or as its chunks."""

import time
from collections.abc import Sequence

import msgspec

from gateway.api.form import Answer, Delta, TokenScore
from gateway.api.generation import answer_id
from gateway.api.scores import TokenNames
from gateway.text.tokenizer import Tokenizer
from gateway.wire import completions
from gateway.wire.completions import CompletionRequest
from gateway.wire.errors import ApiError
from gateway.wire.generation import Usage
from gateway.wire.sse import DONE, CompletionStream, error_event

_encode = msgspec.json.Encoder().encode


class CompletionForm:
    """Writes the answers to one completion request."""

    def __init__(self, request: CompletionRequest, model: str, tokenizer: Tokenizer) -> None:
        self._request = request
        self._names = TokenNames(tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._id, self._created, self._model = answer_id("cmpl-"), int(time.time()), model
        self._tier = "default" if request.service_tier is not None else msgspec.UNSET
        self._events = CompletionStream(
            self._id, self._created, model, include_usage=request.include_usage, service_tier=self._tier
        )
        self._plain = not (request.continuous_usage or request.return_token_ids or request.logprobs is not None)
        self._prompt: Usage | None = None
        self._counts: dict[int, int] = {}
        self._offsets: dict[int, int] = {}
        self._prompts: dict[int, Sequence[int]] = {}

    def begin(self, usage: Usage, prompts: Sequence[Sequence[int]] = ()) -> bytes:
        self._prompt = usage
        if self._request.return_token_ids:
            self._prompts = dict(enumerate(prompts))
        return b""

    def delta(self, index: int, delta: Delta) -> bytes:
        if self._plain:
            return self._events.text(delta.text, index) if delta.text else b""
        self._counts[index] = delta.completion_tokens
        if not delta.text and not delta.tokens:
            return b""
        prompt = self._prompts.pop(index, None)
        choice = completions.CompletionChoice(
            index,
            delta.text,
            logprobs=self._logprobs(delta.tokens, self._offsets.get(index, 0)),
            prompt_token_ids=list(prompt) if prompt is not None else msgspec.UNSET,
            token_ids=[token.id for token in delta.tokens] if self._request.return_token_ids else msgspec.UNSET,
        )
        self._offsets[index] = self._offsets.get(index, 0) + len(delta.text)
        return self._events.event(choice, **self._usage_so_far())

    def finish(self, answer: Answer) -> bytes:
        choice = completions.CompletionChoice(answer.index, "", answer.reason, stop_reason=_stop_reason(answer))
        return self._events.event(choice, **self._usage_so_far())

    def end(self, usage: Usage) -> bytes:
        return (self._events.usage(usage) if self._request.include_usage else b"") + DONE

    def whole(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        choices = [self._choice(answer) for answer in answers]
        return _encode(
            completions.Completion(self._id, self._created, self._model, choices, service_tier=self._tier, usage=usage)
        )

    def fault(self, error: ApiError) -> bytes:
        return error_event(error)

    def _choice(self, answer: Answer) -> completions.CompletionChoice:
        request = self._request
        return completions.CompletionChoice(
            answer.index,
            answer.text,
            answer.reason,
            logprobs=self._logprobs(answer.tokens, 0),
            stop_reason=_stop_reason(answer),
            prompt_logprobs=msgspec.UNSET
            if request.prompt_logprobs is None
            else self._names.prompt(answer.prompt_scores),
            prompt_token_ids=list(answer.prompt) if request.return_token_ids else msgspec.UNSET,
            token_ids=[token.id for token in answer.tokens] if request.return_token_ids else msgspec.UNSET,
        )

    def _logprobs(self, tokens: Sequence[TokenScore], offset: int) -> completions.CompletionLogprobs | None:
        wanted = self._request.logprobs
        return None if wanted is None else self._names.completion(tokens, offset, wanted > 0)

    def _usage_so_far(self) -> dict[str, Usage]:
        """The chunk's ``usage``, where every chunk is to have one."""
        if not self._request.continuous_usage or self._prompt is None:
            return {}
        cached = self._prompt.prompt_tokens_details.cached_tokens
        completion = sum(self._counts.values())
        return {"usage": Usage.of(prompt=self._prompt.prompt_tokens, completion=completion, cached=cached)}


def _stop_reason(answer: Answer) -> str | msgspec.UnsetType:
    return msgspec.UNSET if answer.stop_string is None else answer.stop_string
