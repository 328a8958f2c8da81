"""Which secrets does the environment hold? Keys that clients must have, and those of ours for others."""

import os

from gateway.settings import Settings, SettingsError


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
