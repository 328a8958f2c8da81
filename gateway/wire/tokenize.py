"""What goes in and out of ``/tokenize`` and ``/detokenize``? The shapes are vLLM's."""

from typing import Any

import msgspec

from gateway.wire import errors
from gateway.wire.chat import ChatMessage, check_messages
from gateway.wire.decode import BodyDecoder


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Either ``prompt`` or ``messages``.

    ``add_special_tokens`` is true by default for a prompt and false for messages, whose template brings its own.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        """Look at the values, after the types.

        Raises:
            ApiError: 400; neither or both of prompt and messages, or messages that can't be read.
        """
        if (self.prompt is None) == (self.messages is None):
            raise errors.invalid_value("prompt", "send either 'prompt' or 'messages'")
        if self.messages is not None:
            check_messages(self.messages)


class TokenizeResponse(msgspec.Struct, frozen=True):
    """The token ids; ``token_strs`` only when asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids to be decoded, special tokens included."""

    tokens: list[int]
    model: str | None = None


class DetokenizeResponse(msgspec.Struct, frozen=True):
    """The text that the tokens stand for."""

    prompt: str


decoder: BodyDecoder[TokenizeRequest] = BodyDecoder(TokenizeRequest)
detokenize_decoder: BodyDecoder[DetokenizeRequest] = BodyDecoder(DetokenizeRequest)
