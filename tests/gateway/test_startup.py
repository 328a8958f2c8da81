"""What somebody sees who waits for the model to load."""

import io

from engine.link import Progress
from gateway.startup import Bar, Lines, display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


REPORTS = [Progress("reading weights", done, 10) for done in range(11)] + [
    Progress("warming up"),
    Progress("ready", 1, 1),
]


def test_a_line_for_each_stage() -> None:
    stream = io.StringIO()
    with display(stream) as shown:
        assert isinstance(shown, Lines)
        for report in REPORTS:
            shown.show(report)
    assert stream.getvalue() == "penstock: reading weights\npenstock: warming up\npenstock: ready\n"


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    with display(stream) as shown:
        assert isinstance(shown, Bar)
        for report in REPORTS:
            shown.show(report)
    assert "ready" in stream.getvalue()
