import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.traffic.variants import Asking, Variants, Weighted, sticky_key

KEYS = [f"user={number}" for number in range(4000)]


def chosen(*weights: float, salt: str = "") -> list[str]:
    names = ("stable", "canary", "other")
    variants = Variants("chat", [Weighted(*pair) for pair in zip(names, weights, strict=False)], salt)
    return [variants.choose(key) for key in KEYS]


def test_shares_are_as_weights_say() -> None:
    counts = {name: chosen(70, 20, 10).count(name) / len(KEYS) for name in ("stable", "canary", "other")}
    assert counts == {
        "stable": pytest.approx(0.7, abs=0.03),
        "canary": pytest.approx(0.2, abs=0.03),
        "other": pytest.approx(0.1, abs=0.03),
    }


@given(st.floats(0, 100), st.floats(0, 100))
def test_raising_a_weight_moves_users_to_the_canary_only(one: float, other: float) -> None:
    low, high = sorted((one, other))
    for before, after in zip(chosen(100 - low, low), chosen(100 - high, high), strict=True):
        assert before == after or (before, after) == ("stable", "canary")


def test_with_several_canaries_nobody_goes_back_to_the_stable_one() -> None:
    for before, after in zip(chosen(80, 5, 15), chosen(60, 25, 15), strict=True):
        assert before == after or after != "stable"


def test_the_same_user_gets_the_same_variant_in_every_process_until_the_salt_changes() -> None:
    assert [Variants("chat", [Weighted("a", 1), Weighted("b", 1)]).choose(key) for key in KEYS[:8]] == list("abbbbabb")
    assert chosen(50, 50) == chosen(1, 1) != chosen(50, 50, salt="again")
    assert set(chosen(0, 1)) == {"canary"}
    assert set(chosen(1, 0)) == {"stable"}


@pytest.mark.parametrize("weights", [[0.0, 0.0], [5.0, -1.0]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="the weights of 'chat'"):
        Variants("chat", [Weighted(str(weight), weight) for weight in weights])


def test_what_a_variant_sticks_to() -> None:
    asking = Asking(user="u", session="s", key="k", headers={"x-team": "t"}, request="r")
    rules = ["user", "session", "key", "header:X-Team", "header:x-none", "none"]
    assert [sticky_key(rule, asking) for rule in rules] == [
        ("user=u", True),
        ("session=s", True),
        ("key=k", True),
        ("header:X-Team=t", True),
        ("request=r", False),
        ("request=r", False),
    ]
