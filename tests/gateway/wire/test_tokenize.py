"""Tokenize takes a prompt or messages, not both, not neither."""

import json
from typing import Any

import pytest

from gateway.wire import tokenize
from gateway.wire.errors import ApiError

MESSAGES = [{"role": "user", "content": "x"}]


def decode(**fields: Any) -> tokenize.TokenizeRequest:
    request = tokenize.decoder.decode(json.dumps(fields).encode())
    request.check()
    return request


def test_either() -> None:
    assert decode(prompt="").prompt == ""
    messages = decode(messages=MESSAGES, add_generation_prompt=True).messages
    assert messages is not None and messages[0].content == "x"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "prompt"), ({"prompt": "x", "messages": MESSAGES}, "prompt"), ({"messages": []}, "messages")],
)
def test_neither_or_both(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_detokenize() -> None:
    assert tokenize.detokenize_decoder.decode(b'{"tokens": [1, 2]}').tokens == [1, 2]
    with pytest.raises(ApiError) as caught:
        tokenize.detokenize_decoder.decode(b'{"tokens": ["x"]}')
    assert caught.value.param == "tokens.0"
