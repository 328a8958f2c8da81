"""How are plots drawn? Colours, and axes whose marks people can read."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, Final, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, PercentFormatter

# Okabe & Ito's colours, which people with any of the usual kinds of colour blindness can tell apart.
BLUE, SKY, ORANGE, RED, GREEN, PINK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7"
INK, FAINT = "#222222", "#8A8A8A"
_WIDTH: Final = 9.0
STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "penstock",
    "path.simplify_threshold": 0.5,
}


def style() -> AbstractContextManager[None]:
    """In it, figures are made and drawn in our style."""
    return matplotlib.rc_context(STYLE)


def duration(seconds: float) -> str:
    """A time for people, to three digits: ``120 ms``, ``1.5 s``, ``2 min``."""
    if not math.isfinite(seconds):
        return "none"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size * (2 if size > 1 else 0.9995):
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 1e-6)} µs" if seconds else "0 s"


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def figure_of(rows: int, height: float, columns: int = 1, ratios: Sequence[float] | None = None) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, height))
    grid = figure.subplots(rows, columns, sharex=columns == 1 and ratios is None, squeeze=False, height_ratios=ratios)
    return figure, grid[:, 0] if columns == 1 else grid


def time_unit(span: float) -> tuple[float, str]:
    """By what to divide seconds, and what the result's unit is called."""
    return next(
        (size, name) for size, name in ((1.0, "s"), (60.0, "min"), (3600.0, "h")) if span <= 600 * size or size > 60
    )


def spread(count: int, most: int) -> Any:
    """Which of ``count`` requests are drawn: all, or evenly spread ones."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(int)


def legend(axis: Axes, count: int) -> None:
    """In the line of the title, at the right: over the data it would hide some."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 0.98),
            ncols=count,
            borderaxespad=0,
            columnspacing=1.2,
            markerscale=1.5,
        )


def share_axis(axis: Axes, label: str) -> None:
    axis.set_ylim(0, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylabel(label)


def time_axis(axes: Axes, which: Literal["x", "y"], low: float, high: float, most: int = 8) -> None:
    """A logarithmic scale whose marks are few round times, however far it reaches."""
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    span, marks = math.log(high / low * 1.44), [low]
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), tuple(np.arange(1, 10, 0.5))):
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        found = [step * 10.0**decade for decade in decades for step in steps]
        inside = [mark for mark in found if low / 1.2 <= mark <= high * 1.2]
        near = min((math.log(after / before) for before, after in pairwise(inside)), default=span)
        if len(inside) > most or near < span / (2 * most):
            break
        marks = inside or marks
    axis.set_major_locator(FixedLocator(marks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
