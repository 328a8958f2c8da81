"""`scheduler.config`: settings that can't work are refused with the field's name."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from scheduler.config import SchedulerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_running": 0}, "max_running 0: must be at least 1"),
        ({"window": 0}, "window 0"),
        ({"quantum": -5}, "quantum -5"),
        ({"max_step": 0.0}, "max_step 0.0: must be more than 0 seconds"),
        ({"tpot": float("nan")}, "tpot nan"),
        ({"background_step": 0.0}, "background_step 0.0: must be more than 0 seconds"),
        ({"background_kv": 0.0}, "background_kv 0.0: must be more than 0 and at most 1"),
        ({"background_share": -0.1}, "background_share -0.1: must not be negative"),
        ({"oldest_share": -1.0}, "oldest_share -1.0: must not be negative"),
        ({"margin": 1.0}, "margin 1.0: must be at least 0 and below 1"),
        ({"max_batch_tokens": 300, "max_running": 256, "min_prefill_tokens": 64}, "max_batch_tokens 300: a step must"),
    ],
)
def test_refuses_what_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(**settings)


def test_is_frozen() -> None:
    config = SchedulerConfig()
    with pytest.raises(FrozenInstanceError):
        config.tpot = 1.0  # type: ignore[misc]
