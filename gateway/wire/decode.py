"""How does a request's body become a struct? Decoding with OpenAI's errors, and the fields that we don't know."""

import re
from typing import Generic, TypeVar

import msgspec

from gateway.wire import errors

RequestT = TypeVar("RequestT", bound=msgspec.Struct)

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BAD_NUMBER = re.compile(rb"-?(?:NaN|Infinity)")


class BodyDecoder(Generic[RequestT]):
    """Decodes bodies into one request type. Unknown fields are accepted, as OpenAI accepts them."""

    __slots__ = ("_decoder", "_known")

    def __init__(self, type: type[RequestT]) -> None:
        self._decoder = msgspec.json.Decoder(type)
        self._known = frozenset(type.__struct_encode_fields__)

    def decode(self, body: bytes) -> RequestT:
        """The request in ``body``.

        Raises:
            ApiError: 400; the body is no JSON or no UTF-8, or a field is missing or of the wrong type.
        """
        try:
            if not body.isascii():
                body.decode()  # msgspec looks at the bytes of known fields only
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise errors.invalid_field(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise errors.invalid_json(_reason(body, error)) from None

    def unknown_fields(self, body: bytes) -> list[str]:
        """The names at the top of a body that `decode` accepted which mean nothing here: for a debug log line.

        A second pass over the body: call it only where the line will be written.
        """
        return sorted(_fields.decode(body).keys() - self._known)


def _reason(body: bytes, error: Exception) -> str:
    """Why ``body`` is no JSON, in words for the person who sent it."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8."
    if isinstance(error, RecursionError):
        return "it is nested too deeply."
    if not body.strip():
        return "it is empty."
    text = str(error).removeprefix("JSON is malformed: ")
    at = re.search(r"\(byte (\d+)\)", text)
    if at and any(_BAD_NUMBER.match(body, max(0, int(at[1]) - back)) for back in (0, 1)):
        return f"NaN and Infinity are no JSON numbers (byte {at[1]})."
    return f"{text}."
