"""A short round of the fuzzing that `make fuzz` does at length."""

import pytest

from tests.fuzz import fuzz


@pytest.mark.slow
def test_no_body_breaks_the_server() -> None:
    report = fuzz(800, chance=7, growth=150)
    assert not report.faults and not report.leaks, str(report)
    assert report.sent == 800
    assert report.statuses[200] > 25 and report.statuses[400] > 250
