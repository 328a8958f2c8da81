"""What goes in and out of ``/v1/batches``, and what is on the lines of a batch's files?"""

from typing import Final, Literal

import msgspec

from gateway.wire import errors
from gateway.wire.decode import BodyDecoder
from gateway.wire.files import ExpiresAfter

ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MAX_LISTED: Final = 100

_MAX_METADATA: Final = 16
_MAX_KEY: Final = 64
_MAX_VALUE: Final = 512

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]

BATCH_ERROR_CODES: Final[dict[str, str]] = {
    "empty_file": "The input file has no requests.",
    "invalid_json_line": "A line is not JSON, or not UTF-8.",
    "line_too_long": "A line has more bytes than the server accepts in a request.",
    "missing_required_parameter": "A line lacks a field; `param` is its name.",
    "invalid_type": "A field of a line has a value of the wrong type; `param` is its name.",
    "duplicate_custom_id": "A line has the `custom_id` of a line before it.",
    "invalid_custom_id": "A `custom_id` is empty, or has more than 512 characters.",
    "invalid_method": "A line's `method` is not POST.",
    "invalid_url": "A line's `url` is not the batch's endpoint.",
    "too_many_errors": "There are more errors than are listed.",
    "storage_error": "The disk refused. A batch under way is paused, and goes on once the disk can be used.",
    "internal_error": "A fault of the server; it has been logged.",
    "batch_expired": "In the error file: the request had not ended before the completion window had.",
    "batch_cancelled": "In the error file: the batch was cancelled before the request had ended.",
}


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a batch has, and how many have ended in one way or the other."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(msgspec.Struct, frozen=True):
    """How many of the tokens of prompts came from the prefix cache."""

    cached_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    """How many of the generated tokens were reasoning."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of all requests of a batch that were answered."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens_details: OutputDetails = OutputDetails()


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a batch, on the ``line`` that it was found (from 1)."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, frozen=True):
    """All that was found."""

    data: list[BatchError]
    object: Literal["list"] = "list"


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. Times are Unix time in seconds."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: BatchErrors | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage = BatchUsage()
    metadata: dict[str, str] | None = None
    object: Literal["batch"] = "batch"


class CreateBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /v1/batches``."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None

    def check(self) -> None:
        """Look at the values, after the types.

        Raises:
            ApiError: 400; no such endpoint or window, or metadata beyond OpenAI's bounds.
        """
        if self.endpoint not in ENDPOINTS:
            raise errors.invalid_value("endpoint", f"'{self.endpoint}' is not one of {', '.join(ENDPOINTS)}")
        if self.completion_window != "24h":
            raise errors.invalid_value("completion_window", f"'{self.completion_window}' is not '24h'")
        if self.output_expires_after is not None:
            self.output_expires_after.check("output_expires_after")
        metadata = self.metadata or {}
        if len(metadata) > _MAX_METADATA:
            raise errors.invalid_value("metadata", f"it has more than {_MAX_METADATA} keys")
        for key, value in metadata.items():
            if len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
                raise errors.invalid_value(
                    "metadata", f"a key has more than {_MAX_KEY} characters, or a value more than {_MAX_VALUE}"
                )


class RequestLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a batch's input. The body stays as it was written."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class LineResponse(msgspec.Struct, frozen=True):
    """What the endpoint answered to a line."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True):
    """Why a line has no answer."""

    code: str
    message: str


class ResultLine(msgspec.Struct, frozen=True):
    """A line of a batch's output file or error file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None


decoder: BodyDecoder[CreateBatch] = BodyDecoder(CreateBatch)
