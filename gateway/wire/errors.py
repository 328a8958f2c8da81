"""What does a client read when a request can't be answered? OpenAI's error object, and one table of all codes.

Every failure that reaches a client is an `ApiError`: an HTTP status and the body
``{"error": {"message", "type", "param", "code"}}``. The functions below make one for each kind of failure; the codes
they use are listed, with their meaning, in `ERROR_CODES`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

ERROR_CODES: Final[dict[str, str]] = {
    "invalid_json": "The body is not JSON, or not valid UTF-8.",
    "invalid_type": "A field has a value of the wrong type; `param` is the path of the field.",
    "missing_required_parameter": "A field that the endpoint needs is missing; `param` is its path.",
    "invalid_value": "A field has the right type but a value that makes no sense; `param` is its path.",
    "unsupported_parameter": "A field asks for something that this server does not do; none is ignored silently.",
    "unsupported_content": "A message has a part (such as an image) that a text model can't read.",
    "invalid_messages": "The model's chat template refused the messages; the message is the template's own.",
    "context_length_exceeded": "Prompt and answer together would not fit into the model's context.",
    "request_too_large": "The body has more bytes than the server accepts.",
    "model_not_found": "No model of that name is served here.",
    "not_found": "No such path, or nothing of the id in it.",
    "previous_response_not_found": "The response to go on from, or one before it, is not kept, or not any more.",
    "method_not_allowed": "The path exists, but not for this method; the `Allow` header lists those that it has.",
    "conflict": "What was asked of an object can't be done in the state that it is in.",
    "invalid_configuration": "The configuration file is wrong, or can't be put into force; the message says why.",
    "overloaded": "The queue is full; the `Retry-After` header says when to try again, in seconds.",
    "invalid_api_key": "No API key was sent, none that is known here, or one that has expired.",
    "model_not_allowed": "The API key may not ask for that model, whether there is one or not.",
    "not_allowed": "The API key may not do that, whatever the model is; the message says what.",
    "rate_limit_exceeded": "A limit of the API key is reached; `Retry-After` says when to try again.",
    "insufficient_quota": "The API key's tokens of the day are used up; `Retry-After` says when there are new ones.",
    "bad_upstream": "The upstream answered with something that is no answer, or broke off in the middle of one.",
    "upstream_timeout": "The upstream did not begin its answer in time, or fell silent in the middle of it.",
    "unavailable": "No worker can answer now: it is starting, draining, or has just died.",
    "internal_error": "A fault of the server.",
}


class ErrorDetail(msgspec.Struct, frozen=True):
    """What OpenAI's error object says. ``param`` is the path of the field at fault, such as ``messages.0.content``."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is an error."""

    error: ErrorDetail


_encoder = msgspec.json.Encoder()


class ApiError(Exception):
    """A request that gets an error for an answer: ``status`` and ``headers`` of the response, and its `body`.

    ``code`` is one of `ERROR_CODES`; ``headers`` are those that this error adds, by lower-case name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers: dict[str, str] = dict(headers or {})
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)
        self._body: bytes | None = None

    @property
    def message(self) -> str:
        return self.detail.message

    @property
    def code(self) -> str | None:
        return self.detail.code

    @property
    def param(self) -> str | None:
        return self.detail.param

    @property
    def body(self) -> bytes:
        """The error object as JSON; encoded on first use, then kept."""
        if self._body is None:
            self._body = _encoder.encode(ErrorBody(self.detail))
        return self._body


def invalid_json(reason: str) -> ApiError:
    """400: the body is no JSON; ``reason`` says where it breaks."""
    return ApiError(400, f"The body is not valid JSON: {reason}", code="invalid_json")


_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<key>key in )?\$(?P<path>[^`]*)`)?$", re.DOTALL)
_INDEX = re.compile(r"\[(\d+)\]")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]*)`$")
_WRONG = re.compile(r"^Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`$")
_JSON_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def _json_names(types: str) -> str:
    """``str | null`` in the words of JSON: ``a string or null``."""
    return " or ".join(_JSON_NAMES.get(name, name) for name in types.split(" | "))


def invalid_field(error: msgspec.ValidationError) -> ApiError:
    """400 for what msgspec found wrong, with the field's path in ``param`` (``messages.0.content``)."""
    found = _PATH.match(str(error))
    what, path = (found["what"], found["path"] or "") if found else (str(error), "")
    path = _INDEX.sub(r".\1", path).replace("[...]", ".*").lstrip(".")
    if missing := _MISSING.match(what):
        return missing_field(f"{path}.{missing['field']}" if path else missing["field"])
    where = f"'{path}'" if path else "the body"
    if wrong := _WRONG.match(what):
        message = (
            f"Invalid type for {where}: expected {_json_names(wrong['expected'])}, but got {_json_names(wrong['got'])}."
        )
        return ApiError(400, message, code="invalid_type", param=path or None)
    return ApiError(400, f"Invalid value for {where}: {what}.", code="invalid_value", param=path or None)


def invalid_value(param: str, reason: str) -> ApiError:
    """400: the value of ``param`` makes no sense; ``reason`` completes "Invalid value for 'param': …"."""
    return ApiError(400, f"Invalid value for '{param}': {reason}.", code="invalid_value", param=param)


def missing_field(param: str) -> ApiError:
    """400: ``param`` isn't there, and what else was sent makes it necessary."""
    return ApiError(400, f"Missing required field '{param}'.", code="missing_required_parameter", param=param)


def unsupported_parameter(param: str, reason: str) -> ApiError:
    """400: ``param`` asks for what this server doesn't do; ``reason`` says what it does instead."""
    message = f"'{param}' is not supported: {reason}."
    return ApiError(400, message, code="unsupported_parameter", param=param)


def unsupported_content(param: str, kind: str) -> ApiError:
    """400: a message has a part of a kind that a text model can't read."""
    message = f"'{param}' is {kind!r}, but this model reads text only: send parts of type 'text'."
    return ApiError(400, message, code="unsupported_content", param=param)


def invalid_messages(reason: str) -> ApiError:
    """400: the model's chat template refused the messages, in the template's own words."""
    return ApiError(
        400,
        f"The model's chat template refused the messages: {reason}",
        code="invalid_messages",
        param="messages",
    )


def context_length_exceeded(
    *, max_model_len: int, prompt_tokens: int, max_tokens: int | None = None, param: str = "messages"
) -> ApiError:
    """400: the prompt, or prompt plus ``max_tokens``, is longer than the model's context. Says both numbers."""
    if max_tokens is None or prompt_tokens >= max_model_len:
        asked = f"your prompt has {prompt_tokens} tokens, which leaves no room for an answer"
        help = "Shorten the prompt"
    else:
        asked = (
            f"you asked for {prompt_tokens + max_tokens} tokens "
            f"({prompt_tokens} in the prompt, {max_tokens} for the answer)"
        )
        help = "Shorten the prompt or lower max_tokens"
    message = f"This model's maximum context length is {max_model_len} tokens, but {asked}. {help}."
    return ApiError(400, message, code="context_length_exceeded", param=param)


def request_too_large(limit: int, size: int | None = None) -> ApiError:
    """413: the body has more than ``limit`` bytes. ``size`` is what its Content-Length claims, where there is one."""
    claimed = f"has {size} bytes" if size is not None else "is larger"
    message = f"The body {claimed}; this server accepts {limit} bytes."
    return ApiError(413, message, code="request_too_large", headers={"connection": "close"})


def model_not_found(model: str, served: Iterable[str] = ()) -> ApiError:
    """404: no such model; names those that there are."""
    names = ", ".join(f"'{name}'" for name in served)
    hint = f" Served here: {names}." if names else ""
    return ApiError(404, f"The model '{model}' does not exist.{hint}", code="model_not_found", param="model")


def not_found(method: str, path: str) -> ApiError:
    """404: no such path."""
    return ApiError(404, f"Unknown request URL: {method} {path}.", code="not_found")


def unknown_id(kind: str, id: str, param: str, hint: str = "") -> ApiError:
    """404: there is no ``kind`` of thing with that id; ``hint`` is one more sentence."""
    message = f"{kind} with id '{id}' not found."
    return ApiError(404, f"{message} {hint}" if hint else message, code="not_found", param=param)


def previous_response_not_found(id: str) -> ApiError:
    """400: a request goes on from a response that isn't there."""
    return ApiError(
        400,
        f"Previous response with id '{id}' not found. Responses are kept for a while, by whoever made them: send the "
        "conversation itself as input.",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def conflict(message: str) -> ApiError:
    """409: the object's state doesn't allow it; ``message`` says which state that is."""
    return ApiError(409, message, code="conflict")


def method_not_allowed(method: str, path: str, allowed: Iterable[str]) -> ApiError:
    """405: the path has other methods; they are listed in the message and in ``Allow``."""
    allow = ", ".join(sorted(allowed))
    message = f"{path} does not answer {method}; it answers {allow}."
    return ApiError(405, message, code="method_not_allowed", headers={"allow": allow})


class QueueFull(ApiError):
    """429: so many wait here already that the request goes nowhere, whoever was to answer it."""


def queue_full(retry_after: float) -> ApiError:
    """429: too many wait in this gateway; see `overloaded`, which says the same to clients."""
    return overloaded(retry_after, made=QueueFull)


def overloaded(
    retry_after: float, message: str = "The server's queue is full.", *, made: type[ApiError] = ApiError
) -> ApiError:
    """429: try again in ``retry_after`` seconds (rounded up to whole ones, at least 1, as HTTP wants it)."""
    seconds = max(1, math.ceil(retry_after)) if math.isfinite(retry_after) else 60
    return made(
        429,
        f"{message} Try again in {seconds} s.",
        type="rate_limit_error",
        code="overloaded",
        headers={"retry-after": str(seconds)},
    )


def rate_limit_exceeded(kind: str, message: str, headers: dict[str, str]) -> ApiError:
    """429: a limit of the key is reached. ``kind`` is the type, as OpenAI has it: ``requests`` or ``tokens``."""
    return ApiError(429, message, type=kind, code="rate_limit_exceeded", headers=headers)


def insufficient_quota(message: str, headers: dict[str, str]) -> ApiError:
    """429: the key's budget of the day is used up."""
    return ApiError(429, message, type="insufficient_quota", code="insufficient_quota", headers=headers)


def invalid_configuration(message: str) -> ApiError:
    """422: the configuration file can't be put into force."""
    return ApiError(422, f"Nothing has changed: {message}", code="invalid_configuration")


def unavailable(message: str, retry_after: float | None = None) -> ApiError:
    """503: nobody can answer now; ``message`` says why."""
    headers = {} if retry_after is None else {"retry-after": str(max(1, math.ceil(retry_after)))}
    return ApiError(503, message, type="server_error", code="unavailable", headers=headers)


def shutting_down() -> ApiError:
    """503: nothing new is taken any more, and the connection closes."""
    error = unavailable("The server is shutting down.", 1)
    error.headers["connection"] = "close"
    return error


def invalid_key(message: str) -> ApiError:
    """401: the client may not ask."""
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def model_not_allowed(model: str) -> ApiError:
    """403: the client may not ask for ``model``; it is not told whether there is one."""
    return ApiError(403, f"This API key may not use the model '{model}'.", code="model_not_allowed", param="model")


def not_allowed(what: str) -> ApiError:
    """403: the client may not do ``what``."""
    return ApiError(403, f"This API key may not {what}.", code="not_allowed")


def bad_upstream(message: str) -> ApiError:
    """502: what the upstream sent is of no use."""
    return ApiError(502, message, type="server_error", code="bad_upstream")


def upstream_timeout(message: str) -> ApiError:
    """504: the upstream took too long."""
    return ApiError(504, message, type="server_error", code="upstream_timeout")


def internal_error(message: str = "The server had a fault while it answered; it has been logged.") -> ApiError:
    """500: a fault of ours. ``message`` must not carry anything from the inside."""
    return ApiError(500, message, type="server_error", code="internal_error")
