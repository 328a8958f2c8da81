"""What may somebody say of an answer? ``/v1/feedback``."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gateway.wire import errors
from gateway.wire.decode import BodyDecoder

_TEXT: Final = 1 << 16


class FeedbackRequest(msgspec.Struct, kw_only=True):
    """What somebody thinks of an answer, at any time after it.

    ``request_id`` is the answer's header ``x-request-id``. ``score``: the higher the better, in a scale of one's own;
    ``label``: a word of one's own; ``correction``: what the answer should have been; ``preferred``: an answer that was
    better; ``comment``: free text; ``user``: who says so. One of them at least, beside ``user``.
    """

    request_id: Annotated[str, Meta(min_length=1, max_length=160)]
    score: float | None = None
    label: Annotated[str, Meta(max_length=256)] | None = None
    correction: Annotated[str, Meta(max_length=_TEXT)] | None = None
    preferred: Annotated[str, Meta(max_length=_TEXT)] | None = None
    comment: Annotated[str, Meta(max_length=_TEXT)] | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None

    def check(self) -> None:
        """See that something is said.

        Raises:
            ApiError: 400, nothing is.
        """
        said = (self.score, self.label, self.correction, self.preferred, self.comment)
        if all(one is None for one in said):
            raise errors.missing_field("score")


class FeedbackTaken(msgspec.Struct, frozen=True, kw_only=True):
    """The feedback is there. ``recorded``: in the request log; ``counted``: a rollout takes it for evidence."""

    request_id: str
    recorded: bool
    counted: bool
    object: Literal["feedback"] = "feedback"


decoder: Final = BodyDecoder(FeedbackRequest)
