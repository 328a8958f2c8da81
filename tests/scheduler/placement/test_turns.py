"""`scheduler.placement.turns`: nobody that waits gets far ahead, and nobody saves up."""

from scheduler.placement.turns import Turns


def test_who_was_given_more_is_ahead() -> None:
    turns = Turns(2.0)
    for tenant in ("a", "a", "b"):
        turns.joined(tenant)
    turns.left("a", 3.9)
    assert turns.least() == 0.0
    assert (turns.ahead("a", 0.0), turns.ahead("b", 0.0)) == (1, 0)


def test_nobody_saves_up_while_it_asks_for_nothing() -> None:
    turns = Turns(1.0)
    turns.joined("a")
    turns.joined("a")
    turns.left("a", 50.0)
    turns.joined("b")
    assert turns.ahead("a", turns.least()) == turns.ahead("b", turns.least()) == 0


def test_leaving_for_a_moment_makes_nobody_equal() -> None:
    turns = Turns(1.0)
    turns.joined("b")
    turns.joined("a")
    turns.left("a", 5.0)
    turns.joined("a")
    assert turns.ahead("a", turns.least()) == 5


def test_what_is_kept_of_those_that_went_is_bounded() -> None:
    turns = Turns(1.0)
    turns.joined("stays")
    turns.joined("stays")
    for number in range(5000):
        turns.joined(f"t{number}")
        turns.left(f"t{number}", 0.1)
        turns.joined("stays")
        turns.left("stays", 1.0)
    assert len(turns._given) <= 1100
    for _ in range(2):
        turns.left("stays")
    assert not turns._given
