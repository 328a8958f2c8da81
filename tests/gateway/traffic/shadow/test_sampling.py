import pytest

from gateway.traffic.shadow.sampling import Sampling, ShadowPlan

IDS = [f"req-{number:024x}" for number in range(20_000)]


@pytest.mark.parametrize("sample", [0.0, 0.1, 0.75, 1.0])
def test_a_share_is_drawn(sample: float) -> None:
    sampling = Sampling("chat", [ShadowPlan("next", sample)])
    drawn = [sampling.draw(id) for id in IDS]
    assert set(drawn) <= {(), sampling.plans}
    assert len([one for one in drawn if one]) / len(IDS) == pytest.approx(sample, abs=0.015)
    assert drawn == [Sampling("chat", [ShadowPlan("next", sample)]).draw(id) for id in IDS]


def test_shadows_are_drawn_for_themselves() -> None:
    plans = ShadowPlan("one", 0.3), ShadowPlan("two", 0.5), ShadowPlan("all", 1.0)
    drawn = [Sampling("chat", plans).draw(id) for id in IDS[:8000]]
    assert all(plans[2] in one for one in drawn)
    both = sum(plans[0] in one and plans[1] in one for one in drawn) / len(drawn)
    assert both == pytest.approx(0.15, abs=0.02)
    alone = Sampling("chat", [plans[1]])
    assert [plans[1] in one for one in drawn] == [bool(alone.draw(id)) for id in IDS[:8000]]


def test_raising_a_share_only_adds() -> None:
    few, many = (Sampling("chat", [ShadowPlan("next", sample)]) for sample in (0.2, 0.4))
    assert all(many.draw(id) for id in IDS if few.draw(id))
