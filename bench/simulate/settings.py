"""Which ways of scheduling one worker are compared? All are settings of the production scheduler.

Others' ways are therefore what they decide, not their code: FCFS under a fixed token budget is vLLM's default, the
longest cached prefix first is SGLang's, and a small fixed budget is Sarathi-Serve's (Agrawal et al., OSDI 2024).
"""

from dataclasses import fields, replace
from typing import Any, Final

from scheduler.config import SchedulerConfig

_PLAIN: Final[dict[str, Any]] = {
    "time_budget": False,
    "deadlines": False,
    "fairness": False,
    "order": "arrival",
    "lookahead": False,
}
OTHERS: Final[dict[str, dict[str, Any]]] = {
    "fcfs-2048": {**_PLAIN, "token_budget": 2048},
    "fcfs-8192": {**_PLAIN, "token_budget": 8192},
    "longest-prefix": {**_PLAIN, "token_budget": 8192, "order": "prefix", "window": 1024},
    "sarathi-512": {**_PLAIN, "token_budget": 512},
}
"""What others do."""

IDEAS: Final[dict[str, dict[str, Any]]] = {
    "without time_budget": {"time_budget": False, "token_budget": 2048},
    "without deadlines": {"deadlines": False},
    "without fairness": {"fairness": False},
    "without order": {"order": "arrival"},
    "without lookahead": {"lookahead": False},
    "without prefix_cache": {"prefix_cache": False},
}
"""Ours, with one idea switched off."""

SETTINGS: Final[dict[str, dict[str, Any]]] = {"ours": {}, **OTHERS, **IDEAS}
"""Changes to the default settings, by name."""


def scheduling(name: str, base: SchedulerConfig | None = None) -> SchedulerConfig:
    """The settings of that name, as changes to ``base`` (the defaults if there is none).

    Raises:
        ValueError: there are none of that name; it says which there are.
    """
    if name not in SETTINGS:
        raise ValueError(f"{name!r} is none of {', '.join(SETTINGS)}")
    return replace(base or SchedulerConfig(), **SETTINGS[name])


def changed(config: SchedulerConfig, assignments: list[str]) -> SchedulerConfig:
    """``config`` with changes like ``token_budget=1024`` or ``fairness=off``.

    Raises:
        ValueError: there is no such setting, or it can't have that value.
    """
    kinds = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name not in kinds or not equals:
            raise ValueError(f"{assignment!r}: write NAME=VALUE, where NAME is one of {', '.join(kinds)}")
        if kinds[name] is bool:
            if text not in ("on", "off"):
                raise ValueError(f"{assignment!r}: {name} is on or off")
            changes[name] = text == "on"
            continue
        try:
            changes[name] = kinds[name](text)
        except ValueError:
            raise ValueError(f"{assignment!r}: {name} is a number, such as {getattr(config, name)}") from None
    return replace(config, **changes)
