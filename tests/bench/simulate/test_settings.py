"""`bench.simulate.settings`: ways of scheduling by name, and single changes."""

import pytest

from bench.simulate.settings import IDEAS, SETTINGS, changed, scheduling
from scheduler.config import SchedulerConfig


@pytest.mark.parametrize("name", SETTINGS)
def test_every_name_is_a_setting(name: str) -> None:
    assert (scheduling(name) == SchedulerConfig()) == (name == "ours")


def test_each_idea_is_one_switch() -> None:
    for name in IDEAS:
        assert getattr(scheduling(name), name.removeprefix("without ")) in (False, "arrival")


def test_changes_are_read() -> None:
    config = changed(SchedulerConfig(), ["max_running=64", "fairness=off", "tpot=0.1"])
    assert (config.max_running, config.fairness, config.tpot) == (64, False, 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=1", "NAME is one of time_budget"),
        ("max_running", "NAME=VALUE"),
        ("fairness=1", "on or off"),
        ("tpot=x", "a number, such as 0.05"),
        ("tpot=-1", "more than 0"),
        ("order=alphabet", "work, prefix, arrival"),
    ],
)
def test_what_is_no_change_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(SchedulerConfig(), [text])
    with pytest.raises(ValueError, match="none of ours"):
        scheduling("theirs")
