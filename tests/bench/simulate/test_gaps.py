"""`bench.simulate.gaps`: only service while both have a backlog counts, and the range of it."""

from bench.simulate.gaps import ServiceGaps


def test_the_largest_gap_is_over_any_interval() -> None:
    gaps = ServiceGaps()
    gaps.serve("a", 1000.0)
    gaps.want("a")
    gaps.want("b")
    gaps.look()
    assert gaps.largest == 0, "what was before the backlog doesn't count"
    gaps.serve("a", 30.0)
    gaps.look()
    gaps.serve("b", 50.0)
    gaps.look()
    assert gaps.largest == 50
    gaps.content("b")
    gaps.serve("a", 500.0)
    gaps.look()
    assert gaps.largest == 50, "b wants nothing"
    gaps.want("b")
    gaps.look()
    gaps.serve("a", 20.0)
    gaps.look()
    assert gaps.largest == 50, "a new backlog begins at nothing"


def test_a_tenant_alone_has_no_gap() -> None:
    gaps = ServiceGaps()
    gaps.want("a")
    gaps.want("a")
    gaps.serve("a", 10.0)
    gaps.look()
    gaps.content("a")
    gaps.look()
    assert gaps.largest == 0
