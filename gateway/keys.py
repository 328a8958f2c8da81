"""May this client ask at all? Static bearer keys, kept as hashes."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from typing import Final

from gateway.settings import Settings, SettingsError
from gateway.wire import errors

_BEARER: Final = b"bearer "


class Keys:
    """The keys that are accepted; an empty set accepts everybody.

    A presented key is hashed and looked up; the comparison that decides takes as long whatever differs.
    """

    __slots__ = ("_digests", "_latest")

    def __init__(self, keys: Iterable[str] = ()) -> None:
        digests = (hashlib.sha256(key.encode()).digest() for key in keys)
        self._latest = secrets.token_bytes(32)  # the header that was accepted last; at first, one that nobody knows
        self._digests = {digest[:8]: digest for digest in digests}

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: bytes) -> None:
        """Let the value of an ``Authorization`` header pass, or not.

        Raises:
            ApiError: 401; there is no key, or none of ours.
        """
        if not self._digests or hmac.compare_digest(authorization, self._latest):
            return
        if authorization[:7].lower() != _BEARER:
            raise errors.invalid_key("No API key was sent: send it as 'Authorization: Bearer KEY'.")
        digest = hashlib.sha256(authorization[7:].strip()).digest()
        known = self._digests.get(digest[:8])
        if known is None or not hmac.compare_digest(known, digest):
            raise errors.invalid_key("The API key is not known here.")
        self._latest = authorization


def client_keys(settings: Settings) -> list[str]:
    """The keys that clients must have.

    Raises:
        SettingsError: there is none where there should be.
    """
    if settings.api_key_env is None:
        return []
    found = [key.strip() for key in secret("--api-key-env", settings.api_key_env).split(",")]
    return [key for key in found if key]


def secret(option: str, name: str) -> str:
    """What an option's environment variable holds.

    Raises:
        SettingsError: nothing that could be a key.
    """
    value = os.environ.get(name, "").strip()
    if not value.strip(", ") or not value.isascii() or not value.isprintable():
        raise SettingsError(f"{option} {name}: the environment variable {name} has no key in it")
    return value
