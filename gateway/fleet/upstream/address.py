"""Where is an upstream? A URL, taken apart once and checked."""

from typing import NamedTuple
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


class Address(NamedTuple):
    """``path`` is what goes before ``/v1/...``; ``host`` may be a name or an address.

    ``kv_events`` and ``kv_replay`` are where it publishes what it has cached, and repeats what was missed: ZeroMQ's
    endpoints, empty where it doesn't.
    """

    secure: bool
    host: str
    port: int
    path: str
    kv_events: str = ""
    kv_replay: str = ""

    @property
    def authority(self) -> str:
        """``host:port`` as it stands in a ``Host`` header and in labels."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.path}"


def parse_url(text: str) -> Address:
    """The address in ``http://10.0.0.5:8000``; a ``/v1`` at its end says nothing new and is dropped.

    Raises:
        ValueError: it is no HTTP URL, or has parts that an upstream can't have; the message says which.
    """
    parts = urlsplit(text.strip())
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{text!r} is no URL of an upstream: write http://HOST:PORT or https://HOST:PORT")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{text!r} has a user, a query or a fragment: an upstream is http://HOST:PORT/PATH")
    try:
        port = parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise ValueError(f"{text!r} has no valid port: {error}") from None
    path = parts.path.rstrip("/").removesuffix("/v1")
    if any(character <= " " or character == "\x7f" for character in parts.hostname + path):
        raise ValueError(f"{text!r} has blanks in it")
    return Address(parts.scheme == "https", parts.hostname, port, path)
