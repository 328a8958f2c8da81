"""How much of what was said may be kept? It is decided before anything of it touches the disk."""

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from flywheel.conversation import messages
from flywheel.record import Content, Feedback, Record
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
        said = None if output is None else messages(output)  # its bytes have an id, which no other answer has
        hashed = [None if text is None else keys.hash(text) for text in (input, said)]
        return Content("hash", input_hash=hashed[0], output_hash=hashed[1])
    if mode == "redacted":
        input = None if input is None else redact_json(input)
        output = None if output is None else _redact_answer(output)
    if keys is not None and user:
        parts = {name: text for name, text in (("input", input), ("output", output)) if text is not None}
        return Content(mode, sealed=keys.seal(user, parts))
    return Content(mode, input, output)


def keep_json(mode: Mode, text: bytes) -> bytes | None:
    """What a mode lets be kept of a text that is JSON; None where it is nothing."""
    if mode == "redacted":
        return redact_json(text)
    return text if mode == "full" else None


def keep_text(mode: Mode, text: str) -> str:
    """What a mode lets be kept of a text; empty where it is nothing."""
    if mode == "redacted":
        return redact(text)
    return text if mode == "full" else ""


def _redact_answer(output: bytes) -> bytes | None:
    """None where it is a stream that nobody can put together: what came in two pieces would not be found."""
    said = messages(output)
    return redact_json(said) if said.lstrip()[:1] in (b"[", b"{") else None


def keep_fields(mode: Mode, record: Record) -> None:
    """Leave of what a client says in a record's own fields what a mode lets be kept.

    ``user`` and ``session`` stay in every mode: by them records are found that are to be erased. An error's message may
    quote the request that it is about.
    """
    if mode == "full":
        return
    texts = mode == "redacted"
    if record.tags is not None:
        record.tags = {redact(name): redact(value) for name, value in record.tags.items()} if texts else None
    if record.sampling is not None and record.sampling.stop_sequences:
        record.sampling.stop_sequences = tuple(map(redact, record.sampling.stop_sequences)) if texts else ()
    if record.error_message:
        record.error_message = redact(record.error_message) if texts or record.outcome != "invalid" else ""
    if mode == "none":
        record.embedding = None


def keep_feedback(mode: Mode, feedback: Feedback, keys: "UserKeys | None" = None) -> Feedback:
    """Feedback with as much of its free texts as a content mode lets it keep. As `keep`; ``hash`` keeps no text."""
    texts = {
        name: text
        for name in ("correction", "preferred", "comment")
        if (text := getattr(feedback, name)) is not None and mode in ("full", "redacted")
    }
    label = feedback.label if mode == "full" else redact(feedback.label)
    if mode == "redacted":
        texts = {name: redact(text) for name, text in texts.items()}
    without = msgspec.structs.replace(feedback, label=label, correction=None, preferred=None, comment=None)
    if keys is not None and feedback.user and texts:
        sealed = keys.seal(feedback.user, {name: text.encode() for name, text in texts.items()})
        return msgspec.structs.replace(without, sealed=sealed)
    return msgspec.structs.replace(without, **texts)
