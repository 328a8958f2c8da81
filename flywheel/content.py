"""How much of what was said may be kept? It is decided before anything of it touches the disk."""

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from flywheel.conversation import messages
from flywheel.record import Content, Feedback
from flywheel.redaction import redact, redact_json

if TYPE_CHECKING:
    from flywheel.user_keys import UserKeys

Mode = Literal["full", "redacted", "hash", "none"]
MODES: Final[tuple[Mode, ...]] = ("full", "redacted", "hash", "none")


def keep(
    mode: Mode, input: bytes | None, output: bytes | None, *, user: str = "", keys: "UserKeys | None" = None
) -> Content:
    """What a record keeps of a conversation.

    Args:
        mode: ``full``: everything; ``redacted``: without what says who somebody is (`flywheel.redaction`); ``hash``:
            keyed hashes, so that equal texts can be told; ``none``: nothing.
        input: the request's JSON body.
        output: the answer, in one of the forms of `flywheel.record.Content`.
        user: whose conversation it is; empty where nobody said.
        keys: seal it under the user's key, if there is a user; in mode ``hash`` they make the hashes.

    Raises:
        ValueError: mode ``hash`` without keys.
        sqlite3.Error: a new user's key can't be kept.
    """
    if mode == "none":
        return Content("none")
    if mode == "hash":
        if keys is None:
            raise ValueError("content mode hash needs the keys' file: an unkeyed hash of a short text can be guessed")
        hashed = [None if text is None else keys.hash(text) for text in (input, output)]
        return Content("hash", input_hash=hashed[0], output_hash=hashed[1])
    if mode == "redacted":
        input = None if input is None else redact_json(input)
        output = None if output is None else redact_json(messages(output))
    if keys is not None and user:
        parts = {name: text for name, text in (("input", input), ("output", output)) if text is not None}
        return Content(mode, sealed=keys.seal(user, parts))
    return Content(mode, input, output)


def keep_feedback(mode: Mode, feedback: Feedback, keys: "UserKeys | None" = None) -> Feedback:
    """Feedback with as much of its free texts as a content mode lets it keep. As `keep`; ``hash`` keeps no text."""
    texts = {
        name: text
        for name in ("correction", "preferred", "comment")
        if (text := getattr(feedback, name)) is not None and mode in ("full", "redacted")
    }
    if mode == "redacted":
        texts = {name: redact(text) for name, text in texts.items()}
    without = msgspec.structs.replace(feedback, correction=None, preferred=None, comment=None)
    if keys is not None and feedback.user and texts:
        sealed = keys.seal(feedback.user, {name: text.encode() for name, text in texts.items()})
        return msgspec.structs.replace(without, sealed=sealed)
    return msgspec.structs.replace(without, **texts)
