import io

from rich.console import Console

from bench.load.driver import Progress
from bench.load.live import View, clock, rates
from bench.load.records import Record


def progress(elapsed: float, offered: int, finished: int) -> Progress:
    made = Progress(elapsed=elapsed, offered=offered)
    for index in range(finished):
        outcome = "refused" if index == 0 else "ok"
        made.note(Record(index=index, at=0.0, started=0.0, first=0.25, end=1.0, outcome=outcome, output_tokens=4))  # type: ignore[arg-type]
    return made


def test_rates_are_of_the_time_between() -> None:
    assert rates(progress(3.0, 30, 20), progress(1.0, 10, 10)) == (10.0, 5.0, 20.0)
    one = progress(2.0, 10, 4)
    assert rates(one, one) == (5.0, 2.0, 8.0)


def test_plain_lines_are_seldom_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with View(Console(file=file, width=40)) as view:
        for step in range(1, 20):
            view.show(progress(step / 4, step * 4, step), "a run", 75.0, 0.5)
    lines = file.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "a run: 0 s; 16.0 requests/s offered, 4.0 answered; 3 in flight (0 wait); 16 tokens/s; TTFT p50 250"
    )
    assert lines[0].endswith("1 errors; 1:15 left")


def test_a_terminal_has_it_all_in_place() -> None:
    file = io.StringIO()
    with View(Console(file=file, width=100, force_terminal=True, color_system=None, legacy_windows=False)) as view:
        view.show(progress(1.0, 10, 0), "a run", None, None)
        view.show(progress(3.0, 30, 20), "a run", 5.0, 0.4)
    shown = file.getvalue()
    for words in ("a run", "0:05 left", "offered/s", "in flight", "10", "TTFT", "schedule delay", "19 ok, 1 refused"):
        assert words in shown


def test_the_clock() -> None:
    assert [clock(value) for value in (None, 0.4, 75, 3661)] == ["?", "0:00", "1:15", "1:01:01"]
