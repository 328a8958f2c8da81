"""What did a model answer, as its client gets to see it?"""

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """What a model answered. ``calls``: tools and their arguments, as the JSON that came."""

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish_reason: str = ""
