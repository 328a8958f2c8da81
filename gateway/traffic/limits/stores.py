"""Where are limits counted? The store that the configuration asks for."""

import logging
from pathlib import Path

from gateway.config.keys import Counting
from gateway.keys import secret
from gateway.settings import SettingsError
from gateway.traffic.limits.contract import Store
from gateway.traffic.limits.counting import LocalStore
from gateway.traffic.limits.shared import LimitsError, SharedStore

log = logging.getLogger(__name__)


def make_store(counting: Counting, folder: Path | None) -> Store:
    """The store that is configured; without Redis one that all processes share which have this data ``folder``.

    Raises:
        SettingsError: there is no address where one should be, no client of Redis, or the folder can't be used.
    """
    url = counting.redis
    if counting.redis_env is not None:
        url = secret("redis_env", counting.redis_env)
    if url is not None:
        return _redis(url, counting)
    if folder is None:
        log.warning("there is no data folder: limits are counted by this process alone, and forgotten when it ends")
        return LocalStore()
    try:
        return SharedStore(folder / "limits")
    except LimitsError as error:
        raise SettingsError(str(error)) from error


def _redis(url: str, counting: Counting) -> Store:
    try:
        from gateway.traffic.limits.redis_store import RedisStore
    except ImportError:
        raise SettingsError("limits in Redis need its client: pip install 'penstock[redis]'") from None
    try:
        return RedisStore(url, counting.when_away)
    except ValueError as error:
        raise SettingsError(f"limits can't be counted in Redis: {error}") from None
