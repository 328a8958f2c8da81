import io
import struct

import numpy as np
import pytest

from bench.load.columns import columns_of
from bench.load.drawing import duration, spread, style, time_unit
from bench.load.plots import Level, Plot, Series, goodput, plots
from bench.load.records import Record
from tests.bench.load.made import queue


def titles(plot: Plot) -> list[str]:
    return [axis.get_title(loc="left") for axis in plot.figure.axes]


def drawn(plot: Plot) -> bytes:
    file = io.BytesIO()
    with style():
        plot.figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


def test_a_run_has_its_plots_and_their_titles_say_what_was() -> None:
    records = queue(500, stall=(5.0, 1.0), failing=0.02, cached=0.25)
    made = {one.name: one for one in plots(columns_of(records))}
    assert list(made) == ["latency", "distributions", "load", "requests", "caches"]
    ttft = sorted(one.ttft for one in records if one.ttft is not None)
    half, nine = (duration(ttft[-(-len(ttft) * share // 100) - 1]) for share in (50, 90))
    assert titles(made["latency"])[0].startswith(f"TTFT: p50 {half}, p90 {nine}, p99 ")
    refused = sum(one.outcome == "refused" for one in records)
    assert f"({refused:,} refused)" in made["latency"].caption
    most = max(sum(one.at <= other.at < one.end for one in records) for other in records)
    assert titles(made["load"])[1].startswith(f"At most {most:,} in flight")
    assert "25.0% of all prompt tokens were cached" in titles(made["caches"])[0]
    longest = max(one.ttft or 0.0 for one in records)
    assert titles(made["requests"])[1] == f"The 120 around the one that waited longest ({duration(longest)})"


def test_every_plot_has_axes_with_units() -> None:
    for plot in plots(columns_of(queue(300))):
        if plot.name != "distributions":  # there the marks have their units
            assert plot.figure.axes[-1].get_xlabel().endswith(", s")
        width, height = struct.unpack(">II", drawn(plot)[16:24])
        assert width == 360
        assert height >= 180


@pytest.mark.parametrize(
    "records",
    [
        queue(1),
        queue(5, rate=1.0),
        [Record(index=i, at=i / 2, outcome="disconnected", end=i / 2) for i in range(3)],
        [Record(index=0, at=0.0, outcome="timeout", end=1.0)],
        [Record(index=0, at=0.0, outcome="ok", end=0.0, first=0.0, last=0.0, output_tokens=3)],
        [Record(index=i, at=0.0, outcome="ok", first=0.5, last=0.5, end=0.5, output_tokens=1) for i in range(400)],
    ],
    ids=["one", "few", "none answered", "a timeout", "no time at all", "all at once"],
)
def test_odd_runs_can_be_drawn(records: list[Record]) -> None:
    made = list(plots(columns_of(records)))
    assert [one.name for one in made][:4] == ["latency", "distributions", "load", "requests"]
    assert all(map(drawn, made))


def test_no_requests_are_no_plots() -> None:
    assert list(plots(columns_of([]))) == []


def test_of_many_requests_some_are_drawn_and_the_caption_says_so() -> None:
    count = 12_000
    records = [
        Record(index=i, at=i / 100, outcome="ok", first=i / 100 + 0.1, last=i / 100 + 0.2, end=i / 100 + 0.2)
        for i in range(count)
    ]
    made = {one.name: one for one in plots(columns_of(records))}
    assert "5,000 of 12,000 requests are drawn" in made["latency"].caption
    assert titles(made["requests"])[0] == "1,500 of 12,000 requests"
    assert len(made["latency"].figure.axes[0].collections[0].get_offsets()) == 5000  # type: ignore[arg-type]


def test_a_simulation_has_its_caches() -> None:
    series = Series(
        interval=0.5,
        prompt_tokens=[100] * 40,
        cached_tokens=[0] * 20 + [60] * 20,
        preemptions=[0] * 39 + [2],
        kv_use=[0.4] * 40,
        kv_most=[0.9] * 40,
    )
    [plot] = [one for one in plots(columns_of(queue(400)), series) if one.name == "caches"]
    assert titles(plot) == [
        "KV cache: 40% used in the mean, at most 90%",
        "Hit rate: 30.0% of all prompt tokens were cached",
        "2 preemptions",
    ]
    assert drawn(plot)
    assert all(one.name != "caches" for one in plots(columns_of(queue(50)), Series(interval=1.0)))


def test_a_sweep_shows_its_knee() -> None:
    levels = [Level(8, 0.99, True, 0.2), Level(4, 1.0, True, 0.1), Level(16, 0.3, False, 4.0)]
    plot = goodput(levels, "ttft=500ms", 0.95, 8)
    assert titles(plot)[0] == "The knee is at 8 requests/s (green line)"
    [line] = [one for one in plot.figure.axes[0].lines if one.get_linestyle() == "-" and len(one.get_xdata()) == 3]  # type: ignore[arg-type]
    assert np.allclose(line.get_ydata(), [4, 7.92, 4.8])
    assert drawn(plot)
    nothing = goodput([Level(8, 0.1, False)], "ttft=500ms", 0.95, None)
    assert titles(nothing)[0] == "No rate held"
    assert len(nothing.figure.axes) == 2
    assert drawn(nothing)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (2.5e-6, "2.5 µs"), (0.0123456, "12.3 ms"), (0.9996, "1 s"), (1.234, "1.23 s"), (100.4, "100 s"),
        (300, "5 min"), (8000, "2.22 h"), (float("nan"), "none"),
    ],
)  # fmt: skip
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_unit_of_an_axis_fits_its_span() -> None:
    assert [time_unit(span)[1] for span in (0, 600, 3600, 100_000)] == ["s", "s", "min", "h"]


def test_what_is_drawn_of_many_is_evenly_spread() -> None:
    assert spread(4, 10).tolist() == [0, 1, 2, 3]
    assert spread(101, 3).tolist() == [0, 50, 100]
