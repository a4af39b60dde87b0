"""Plots are SVG that parses, says its numbers as text, and is the same each time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from toolprm_decode.errors import RequestError
from toolprm_decode.evaluation import plots
from toolprm_decode.evaluation.plots import Point, Series

SERIES = [
    Series("beam", [Point(100.0, 0.5, 0.4, 0.6), Point(1000.0, 0.75, 0.7, 0.8)]),
    Series("greedy & <co> $x$ $", [Point(120.0, 0.45, 0.4, 0.5)]),
]
DRAWN: dict[str, Callable[[], str]] = {
    "intervals": lambda: plots.intervals(["one", "two"], [Point(0.0, 0.5, 0.4, 0.6), Point(0.0, 0.7)], "accuracy, %"),
    "differences": lambda: plots.intervals(["a − b"], [Point(0.0, -0.02, -0.05, 0.01)], "points", zero=True),
    "lines": lambda: plots.lines(SERIES, "tokens", "accuracy, %", base=10),
    "powers": lambda: plots.lines(
        [Series("N = 1", [Point(1.0, 0.5), Point(16.0, 0.6)])], "M", "%", base=2, bands=False
    ),
    "words": lambda: plots.lines([Series("s", [Point("last", 0.5, 0.4, 0.6), Point("min", 0.6)])], "aggregate", "%"),
    "heat": lambda: plots.heat([1, 4], [1, 2], {(1, 1): 0.615, (4, 1): 0.62, (4, 2): 0.7}),
    "reliability": lambda: plots.reliability([Series("prm", [Point(0.1, 0.05), Point(0.9, 0.95)])], [[3, 90]]),
}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_figures_give_the_same_bytes(name: str) -> None:
    first, again = DRAWN[name](), DRAWN[name]()
    assert first == again
    assert "dc:date" not in first and "matplotlib.org" not in first.lower()


def test_what_stands_in_a_plot_is_text() -> None:
    assert {"one", "two", "accuracy, %"} <= set(texts(DRAWN["intervals"]()))
    assert {"beam", "greedy & <co> $x$ $", "tokens", "100", "1,000"} <= set(texts(DRAWN["lines"]()))
    assert {"1", "16", "N = 1"} <= set(texts(DRAWN["powers"]()))
    assert {"last", "min", "aggregate"} <= set(texts(DRAWN["words"]()))
    assert {"61.5", "62.0", "70.0"} <= set(texts(DRAWN["heat"]()))
    assert {"prm", "right, %"} <= set(texts(DRAWN["reliability"]()))


@pytest.mark.filterwarnings("error")
def test_missing_numbers_and_nothing_at_all_are_drawn() -> None:
    gone = Point(math.nan, math.nan, math.nan, math.nan)
    for svg in (
        plots.intervals([], [], "x"),
        plots.intervals(["a"], [gone], "x"),
        plots.lines([], "x", "y", base=10),
        plots.lines([Series("a", [gone, Point(0.0, 0.5)]), Series("_b", [])], "x", "y", base=10),
        plots.lines([Series("a", [gone])], "x", "y", base=2),
        plots.heat([1.0], [1.0], {(1.0, 1.0): math.nan}),
        plots.reliability([Series("a", [gone])], [[math.nan]]),
    ):
        ElementTree.fromstring(svg)


def test_the_settings_of_the_user_change_nothing() -> None:
    import matplotlib

    first = DRAWN["lines"]()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert DRAWN["lines"]() == first


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RequestError, match=r"pip install 'toolprm_decode\[report\]'"):
        DRAWN["intervals"]()
