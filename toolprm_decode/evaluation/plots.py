"""The plots of a report, as SVG: the same figures give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolprm_decode.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of nothing else, so that a page can put its own in their place.
INK, PAPER, GRID = "#1b1f24", "#fffffe", "#d3d9df"

# Wong's colours for the colour-blind without black and yellow, which one of two backgrounds swallows; the marker and
# the dash tell apart what shares a colour, and what is printed in grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", ":", "-.")
_WIDTH = 4.9  # inches of 72 points: about 470 pixels, so that a phone shrinks the letters little

_STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "toolprm_decode",
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollars in it is no formula
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Point:
    """A share in [0, 1] with its interval at a place on an axis; NaN where a number is missing."""

    x: float | str
    y: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Series:
    """Points that belong together, in the order of the axis."""

    name: str
    points: Sequence[Point]


def intervals(names: Sequence[str], points: Sequence[Point], label: str, *, zero: bool = False) -> str:
    """A dot with its interval for each name, the first on top. zero: they are differences, in points around a line."""
    with _figure(1.0 + 0.27 * len(names)) as (figure, axes):
        places = range(len(names))
        for place, point in zip(places, points, strict=True):
            if math.isfinite(point.low) and math.isfinite(point.high):
                axes.hlines(place, 100 * point.low, 100 * point.high, color=_COLOURS[0], linewidth=2)
            axes.plot([100 * point.y], [place], "o", color=_COLOURS[0])
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(list(places), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        return _svg(figure)


def lines(series: Sequence[Series], x_label: str, y_label: str, *, base: int | None = None, bands: bool = True) -> str:
    """Lines over an axis. Places that are not numbers stand side by side, in the order in which they come.

    base: of a logarithmic axis; with 2 its ticks are the places of the points.
    bands: show the intervals, too; those of many lines would hide each other.
    """
    with _figure(3.1 + _legend_height(series)) as (figure, axes):
        found = list(dict.fromkeys(point.x for each in series for point in each.points))
        words = any(isinstance(x, str) for x in found)
        place = {x: float(number) if words else float(x) for number, x in enumerate(found)}
        for number, each in enumerate(series):
            _line(axes, number, each, place, words, bands)
        if words:
            axes.set_xticks(range(len(found)), [_short(str(x)) for x in found])
            axes.margins(x=0.12)
        elif base is not None and any(x > 0 for x in place.values()):
            _logarithmic(axes, base, sorted(place.values()))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, series)
        return _svg(figure)


def heat(rows: Sequence[float], columns: Sequence[float], cells: dict[tuple[float, float], float]) -> str:
    """Shares by beams (rows) and width (columns), each with its number; cells that were not measured stay empty."""
    from matplotlib.colors import LinearSegmentedColormap

    with _figure(1.0 + 0.45 * len(rows)) as (figure, axes):
        table = [[100 * cells.get((row, column), math.nan) for column in columns] for row in rows]
        shown = [value for line in table for value in line if math.isfinite(value)] or [0.0]
        low, high = min(shown), max(shown)
        # From pale to the blue of the lines: one hue, so that darker is more on every screen and in print.
        colours = LinearSegmentedColormap.from_list("blue", ["#e8f1f8", "#5fa8d3", "#00507d"])
        axes.pcolormesh(
            table, cmap=colours, vmin=low, vmax=high if high > low else low + 1, edgecolors=PAPER, linewidth=2
        )
        for y, line in enumerate(table):
            for x, value in enumerate(line):
                if math.isfinite(value):
                    dark = high > low and (value - low) / (high - low) > 0.7
                    # Not the page's ink: the cell keeps its colour where the page turns dark.
                    colour = "#ffffff" if dark else "#111111"
                    axes.text(x + 0.5, y + 0.5, f"{value:.1f}", ha="center", va="center", color=colour)
        axes.set_xticks([x + 0.5 for x in range(len(columns))], [f"{column:g}" for column in columns])
        axes.set_yticks([y + 0.5 for y in range(len(rows))], [f"{row:g}" for row in rows])
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("width M (candidates a beam)")
        axes.set_ylabel("beams N")
        return _svg(figure)


def reliability(series: Sequence[Series], weights: Sequence[Sequence[float]]) -> str:
    """Share of right steps against the score they were given; points are as large as the share of steps there."""
    with _figure(3.6 + _legend_height(series)) as (figure, axes):
        axes.plot([0, 1], [0, 100], color=GRID, linewidth=1.2)
        for number, (each, own) in enumerate(zip(series, weights, strict=True)):
            points = [p for p in each.points if isinstance(p.x, float) and math.isfinite(p.x) and math.isfinite(p.y)]
            xs, ys = [float(p.x) for p in points], [100 * p.y for p in points]
            colour, marker, dash = _look(number)
            axes.plot(
                xs,
                ys,
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=3,
                linewidth=1.2,
                label=_short(each.name),
            )
            whole = sum(weight for weight in own if math.isfinite(weight)) or 1.0
            sizes = [
                12 + 160 * (weight / whole if math.isfinite(weight) else 0.0)
                for point, weight in zip(each.points, own, strict=True)
                if point in points
            ]
            axes.scatter(xs, ys, s=sizes, color=colour, marker=marker, alpha=0.8, linewidths=0)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("score of the reward model")
        axes.set_ylabel("right, %")
        _legend(figure, series)
        return _svg(figure)


def _columns(series: Sequence[Series]) -> int:
    longest = max((len(each.name) for each in series), default=0)
    return min(len(series), 5 if longest < 8 else 3 if longest < 16 else 2 if longest < 26 else 1)


def _legend_height(series: Sequence[Series]) -> float:
    return 0.22 * math.ceil(len(series) / _columns(series)) if series else 0.0


def _legend(figure: Figure, series: Sequence[Series]) -> None:
    if series:
        # Below the axes, where it hides no line.
        figure.legend(loc="outside lower center", ncols=_columns(series), fontsize=9, columnspacing=1.2)


def _line(axes: Axes, number: int, series: Series, place: dict[float | str, float], words: bool, bands: bool) -> None:
    points = [p for p in series.points if math.isfinite(p.y) and math.isfinite(place[p.x])]
    xs, ys = [place[p.x] for p in points], [100 * p.y for p in points]
    colour, marker, dash = _look(number)
    # Words lie on no scale: a line between them would be read as one.
    style = "" if words else dash
    axes.plot(xs, ys, color=colour, marker=marker, linestyle=style, label=_short(series.name))
    known = [(x, p) for x, p in zip(xs, points, strict=True) if math.isfinite(p.low) and math.isfinite(p.high)]
    if not bands:
        return
    if len(known) > 1 and not words:
        lows, highs = [100 * p.low for _, p in known], [100 * p.high for _, p in known]
        axes.fill_between([x for x, _ in known], lows, highs, color=colour, alpha=0.14, linewidth=0)
    else:
        for x, point in known:
            axes.vlines(x, 100 * point.low, 100 * point.high, color=colour, linewidth=1.2, alpha=0.7)


def _look(number: int) -> tuple[str, str, str]:
    turn = number // len(_COLOURS)
    return _COLOURS[number % len(_COLOURS)], _MARKERS[(number + turn) % len(_MARKERS)], _DASHES[turn % len(_DASHES)]


def _logarithmic(axes: Axes, base: int, places: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=base)
    ratio = max(places) / min(x for x in places if x > 0)
    axes.xaxis.set_major_locator(
        FixedLocator(places) if base == 2 else LogLocator(base, subs=(1.0, 2.0, 5.0) if ratio < 300 else (1.0,))
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))


def _short(name: str) -> str:
    name = f" {name}" if name.startswith("_") else name  # those are left out of legends
    return name if len(name) <= 34 else name[:33] + "…"


def check_installed() -> None:
    """Raises RequestError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RequestError(f"plots need matplotlib ({error}): pip install 'toolprm_decode[report]'") from error


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure to draw on, in the style of all of them. Raises RequestError where matplotlib is not installed."""
    check_installed()
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # The user's own settings of matplotlib must not change what is drawn.
    with style.context(["default", _STYLE]):
        # Browsers' letters are a little wider than those that are measured here: hence the margin.
        figure = Figure(figsize=(_WIDTH, height), dpi=72, layout=ConstrainedLayoutEngine(w_pad=0.11))
        yield figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    layout = figure.get_layout_engine()
    assert layout is not None
    for _ in range(2):  # the first pass settles the ticks, whose labels the second one leaves room for
        layout.execute(figure)
    figure.set_layout_engine("none")  # to save would run it twice more
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))
