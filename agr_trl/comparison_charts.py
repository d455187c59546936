"""The comparison report's charts as plain geometry; its template draws them as inline SVG.

Forests have x in percent of the picture's width and y in pixels, so that their texts keep their
size from phone to paper; the bars have the fixed picture of the line charts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agr_trl.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Frame,
    Line,
    Mark,
    decimals,
    line_chart,
    round_labels,
)
from agr_trl.charts import ticks as round_numbers

ROW_HEIGHT = 46  # of a forest: the texts of a row, its interval under them
TEXT_Y, INTERVAL_Y = 15, 31  # within a row
AXIS_HEIGHT = 26
MARGIN_PERCENT = 2.0
MIN_GAPPED_WIDTH = 4.0  # narrower bars touch


@dataclass(frozen=True)
class Estimate:
    """A row to draw: a value with its interval and text; `tone` is a CSS class, "" for none.

    A `band` reaches so far on both sides of the reference: what is inside could not be seen.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    text: str
    tone: str = ""
    band: float | None = None


@dataclass(frozen=True)
class ForestRow:
    """A row in picture coordinates."""

    name: str
    text: str
    tone: str
    text_y: float
    y: float
    x: float
    low: float | None
    high: float | None
    band: tuple[float, float] | None  # x and width


@dataclass(frozen=True)
class Forest:
    """Estimates on a common axis, one under the other."""

    title: str
    note: str
    summary: str  # what the picture shows, in words
    rows: list[ForestRow]
    ticks: list[Mark]
    reference: float
    bottom: float
    height: float


@dataclass(frozen=True)
class Bars(Frame):
    """Sorted differences of queries: two filled paths, one of them above zero, one below."""

    title: str
    note: str
    summary: str
    wins: str
    losses: str
    win_text: str
    loss_text: str
    y_ticks: list[Mark]
    zero: float


def forest(title: str, note: str, estimates: Sequence[Estimate], reference: float) -> Forest:
    """Lay out estimates with their intervals, and a vertical line at the reference."""
    values = [reference]
    for one in estimates:
        values += [one.value, *(end for end in (one.low, one.high) if end is not None)]
        values += [reference - one.band, reference + one.band] if one.band is not None else []
    axis = round_numbers(min(values), max(values), 4)
    digits = decimals(axis)

    def place(value: float) -> float:
        across = (value - axis[0]) / (axis[-1] - axis[0])
        return round(MARGIN_PERCENT + across * (100 - 2 * MARGIN_PERCENT), 2)

    rows = [
        ForestRow(
            one.name,
            one.text,
            one.tone,
            index * ROW_HEIGHT + TEXT_Y,
            index * ROW_HEIGHT + INTERVAL_Y,
            place(one.value),
            None if one.low is None else place(one.low),
            None if one.high is None else place(one.high),
            _band(one.band, reference, place),
        )
        for index, one in enumerate(estimates)
    ]
    bottom = len(rows) * ROW_HEIGHT
    return Forest(
        title,
        note,
        "; ".join(f"{one.name} {one.text}" for one in estimates),
        rows,
        [Mark(place(x), bottom, _axis_text(x, digits)) for x in axis],
        place(reference),
        bottom,
        bottom + AXIS_HEIGHT,
    )


def difference_bars(
    name: str, rows: Sequence[Mapping[str, Any]], test: Mapping[str, Any], largest: float
) -> Bars:
    """Lay out adversarial - control of each query, the largest win at the left.

    `test` has the counts that are said in words; `largest` is the end of the y axis in both
    directions, the same for all controls.
    """
    differences = sorted((row["adversarial"] - row["control"] for row in rows), reverse=True)
    axis = round_numbers(-largest, largest, 6)
    digits = decimals(axis)
    width = (WIDTH - LEFT - RIGHT) / len(differences)
    drawn = width - 1 if width > MIN_GAPPED_WIDTH else width

    def place(value: float) -> float:
        up = (value - axis[0]) / (axis[-1] - axis[0])
        return round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    def path(sign: int) -> str:
        return "".join(
            f"M{LEFT + index * width:.2f} {place(0)}V{place(value)}h{drawn:.2f}V{place(0)}Z"
            for index, value in enumerate(differences)
            if value * sign > 0
        )

    wins, losses, ties = (test[key] for key in ("wins", "losses", "ties"))
    counts = f"{wins:,} won, {losses:,} lost, {ties:,} even"
    return Bars(
        f"Against {name}",
        counts,
        f"{counts}; the largest win is {differences[0]:+.3f}, the largest loss "
        f"{differences[-1]:+.3f}".replace("-", "−"),
        path(1),
        path(-1),
        f"{wins:,} won",
        f"{losses:,} lost",
        [Mark(LEFT, place(y), _axis_text(y, digits)) for y in axis],
        place(0),
    )


def arm_charts(
    rounds: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[str, str], subject: str
) -> list[Chart]:
    """Return a line chart for each arm but the subject: both over the rounds, on common axes."""
    curves = {
        arm: [(float(this["round"]), this["dev"]) for this in steps]
        for arm, steps in rounds.items()
    }
    values = [y for points in curves.values() for _, y in points if y is not None]
    if subject not in curves or not values:
        return []
    last = max(x for points in curves.values() for x, _ in points)
    labels = round_labels(int(last))
    axis = (0.0, last)
    charts = []
    for arm in curves:
        if arm == subject:
            continue
        lines = [_line(names[key], curves[key], axis) for key in (subject, arm)]
        limits = (min(values), max(values))
        charts.append(line_chart(f"Against {names[arm]}", lines, "", limits, labels))
    return [chart for chart in charts if chart]


def _line(name: str, points: Sequence[tuple[float, float | None]], axis: tuple[float, ...]) -> Line:
    """Return a line that also has, without a value, the ends of the x axis."""
    known = dict(points)
    return Line(name, sorted((dict.fromkeys(axis) | known).items()))


def _band(
    band: float | None, reference: float, place: Callable[[float], float]
) -> tuple[float, float] | None:
    if band is None:
        return None
    left = place(reference - band)
    return left, round(place(reference + band) - left, 2)


def _axis_text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
