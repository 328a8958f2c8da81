"""Whatever bytes a client sends, decoding gives a request or a 400, never anything else."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import chat, completions
from gateway.wire.errors import ApiError


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "truncated"),
        (b"nonsense", "invalid character"),
        (b'{"model": "m", "messages": []} x', "trailing characters"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b'{"unknown": "\xff"}', "not UTF-8"),
        (b'{"unknown": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"model": "\\ud800, and no second half"}', "surrogate"),
        (b'{"temperature": NaN}', "NaN and Infinity are no JSON numbers"),
        (b'{"temperature": -Infinity}', "NaN and Infinity are no JSON numbers"),
        (b'{"unknown": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_no_json(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        chat.decoder.decode(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_numbers_out_of_range() -> None:
    with pytest.raises(ApiError) as caught:
        chat.decoder.decode(b'{"model": "m", "messages": [], "temperature": 1e999}')
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")


def test_unknown_fields_are_accepted_and_listed() -> None:
    body = json.dumps({"zeta": [1], "model": "m", "messages": [], "alpha": None, "user": "u"}).encode()
    assert chat.decoder.decode(body).user == "u"
    assert chat.decoder.unknown_fields(body) == ["alpha", "zeta"]


FIELDS = sorted(chat.ChatCompletionRequest.__struct_fields__)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=5)}),
    max_size=2,
)


@settings(deadline=None, max_examples=300)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), messages=MESSAGES, base=st.booleans())
def test_any_fields(fields: dict[str, object], messages: list[object], base: bool) -> None:
    body = json.dumps({**({"model": "m", "messages": messages} if base else {}), **fields}).encode()
    try:
        request = chat.decoder.decode(body)
        request.check()
        sampling = request.sampling(
            prompt_tokens=3, max_model_len=100, vocab_size=50, defaults={}, prompt_param="messages"
        )
    except ApiError as error:
        assert error.status == 400
        json.loads(error.body)
    else:
        assert 1 <= sampling.max_tokens <= 97 and request.messages


@settings(deadline=None, max_examples=300)
@given(body=st.binary(max_size=40))
def test_any_bytes(body: bytes) -> None:
    for decoder in (chat.decoder, completions.decoder):
        with pytest.raises(ApiError) as caught:
            decoder.decode(body)
        assert caught.value.status == 400
