"""What do answers to operators look like?"""

import msgspec


class Reloaded(msgspec.Struct, frozen=True):
    """What reading the configuration file again has changed, a sentence each."""

    changes: list[str]
