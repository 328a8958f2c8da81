"""What goes in and out of ``/v1/files``? The file object, the list of them, and what a form or a query may say."""

from typing import Final, Generic, Literal, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from gateway.wire import errors

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
StoredPurpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals", "batch_output"]
PURPOSES: Final[tuple[Purpose, ...]] = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_EXPIRY: Final = 3600
MAX_EXPIRY: Final = 30 * 86400
MAX_LISTED: Final = 10_000

_QUERY_LIMIT: Final = 16


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is kept here. Times are Unix time in seconds."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: StoredPurpose
    expires_at: int | None = None
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileDeleted(msgspec.Struct, frozen=True):
    """A file that is no longer there."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A part of a list, as OpenAI's client follows it: the next part begins after ``last_id``."""

    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class ExpiresAfter(msgspec.Struct, frozen=True, kw_only=True):
    """How long a file is kept, in seconds from its creation."""

    anchor: Literal["created_at"]
    seconds: int

    def check(self, param: str) -> None:
        """Look at the value, after its type.

        Raises:
            ApiError: 400; less than an hour or more than 30 days.
        """
        if not MIN_EXPIRY <= self.seconds <= MAX_EXPIRY:
            raise errors.invalid_value(
                f"{param}.seconds", f"it must be between {MIN_EXPIRY} and {MAX_EXPIRY}, not {self.seconds}"
            )


def check_purpose(purpose: str | None) -> Purpose:
    """The purpose that an upload named.

    Raises:
        ApiError: 400; none was named, or one that there isn't.
    """
    if purpose is None:
        raise errors.missing_field("purpose")
    for known in PURPOSES:
        if purpose == known:
            return known
    raise errors.invalid_value("purpose", f"'{purpose}' is not one of {', '.join(PURPOSES)}")


class ListQuery:
    """What the query of a list may say: ``limit``, ``after``, ``order`` (newest first by default), ``purpose``.

    Raises:
        ApiError: 400; a value makes no sense.
    """

    def __init__(self, query: bytes, *, default: int, most: int) -> None:
        try:
            said = dict(parse_qsl(query.decode(), max_num_fields=_QUERY_LIMIT, keep_blank_values=True))
        except ValueError:
            raise errors.invalid_value("query", "it can't be read") from None
        limit = said.get("limit", str(default))
        if not (limit.isascii() and limit.isdigit()) or not 1 <= int(limit[:9]) <= most or len(limit) > 9:
            raise errors.invalid_value("limit", f"it must be a whole number between 1 and {most}")
        order = said.get("order", "desc")
        if order not in ("asc", "desc"):
            raise errors.invalid_value("order", f"'{order}' is neither asc nor desc")
        self.limit = int(limit)
        self.newest_first = order == "desc"
        self.after = said.get("after") or None
        self.purpose = said.get("purpose") or None

    def reaches(self, id: str) -> bool:
        """Whether ``id`` comes after the one that the list is to begin behind."""
        return self.after is None or (id < self.after if self.newest_first else id > self.after)


def page(found: list[T], limit: int) -> Page[T]:
    """The page of ``found``, which is one longer than ``limit`` where there is more."""
    shown = found[:limit]
    return Page(shown, shown[0].id if shown else None, shown[-1].id if shown else None, len(found) > limit)
