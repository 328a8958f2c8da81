"""How soon one gateway knows what another has placed, measured on a real worker."""

import uvloop

from bench.gateways import CASES, Found, Report, markdown, run
from bench.machine import describe


def test_every_case_is_measured() -> None:
    found = uvloop.run(run(1, 0))
    assert [one.case for one in found] == list(CASES)
    assert all(len(one.seconds) == 1 and one.seconds[0] > 0 for one in found)


def test_the_table() -> None:
    page = markdown(Report("today", describe(), [Found(CASES[0], [0.001, 0.002, 0.003])]))
    assert "| idle | 3 times | 2.0 | 3.0 | 3.0 |" in page
