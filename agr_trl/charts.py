"""The report's line charts as plain geometry; its template draws them as inline SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from agr_trl.report_text import metric_name

Point = tuple[float, float | None]  # a None breaks the line

WIDTH, HEIGHT = 320, 190  # of the SVG's viewBox; the page scales it
MANY_ROUNDS = 6  # up to this round or beyond, only the numbers fit under an axis
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 20, 28  # margins for the labels
REWARDS = {
    "rewards/retriever_loss/mean": "loss of R",
    "rewards/relevance/mean": "S",
    "rewards/accepted/mean": "accepted",
}
MAX_MARKED_POINTS = 6  # beyond it the values written beside the points overlap


@dataclass(frozen=True)
class Line:
    """One named line; `points` are (x, y), in the order in which they are joined."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Mark:
    """A text at a place of the picture: a tick, a value, or the border between two rounds."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class DrawnLine:
    """A line in picture coordinates: an SVG path, and the points to mark."""

    name: str
    path: str
    markers: list[Mark]
    last: Mark | None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The size of a picture and the edges of what is drawn in it."""

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Chart(Frame):
    """A chart in picture coordinates, ready to be drawn."""

    title: str
    note: str
    lines: list[DrawnLine]
    y_ticks: list[Mark]
    x_ticks: list[Mark]
    borders: list[Mark]


def round_charts(dev_metric: str, rounds: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the charts over rounds: the dev metric, what was accepted, how hard the queries were.

    A round has number, dev (metrics) and queries (statistics of what G wrote).
    """

    def line(name: str, key: str) -> Line:
        return Line(name, [(this["number"], this["queries"].get(key)) for this in rounds])

    labels = round_labels(max((this["number"] for this in rounds), default=-1))
    dev = Line("dev", [(this["number"], this["dev"].get(dev_metric)) for this in rounds])
    acceptance = [
        line("accepted", "acceptance_rate"),
        line("truly relevant, of these", "truly_relevant_share"),
    ]
    hardness = [
        line("p written", "mean_probability"),
        line("p after", "mean_probability_after"),
        line("S", "mean_relevance"),
    ]
    share = (0.0, 1.0)
    charts = [
        line_chart(
            f"{metric_name(dev_metric)} on dev", [dev], "decides what is kept", None, labels
        ),
        line_chart("Accepted", acceptance, "share of all queries written", share, labels),
        line_chart("How hard, how relevant", hardness, "means, all queries", share, labels),
    ]
    return [chart for chart in charts if chart]


def training_charts(logs: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """Return the charts over G's training steps, the adversarial rounds one after the other.

    `logs` has a round's number and what its trainer logged; round 0, the warm-up, is left out.
    """
    keys = (*REWARDS, "kl", "entropy")
    points: dict[str, list[Point]] = {key: [] for key in keys}
    borders: dict[float, str] = {}
    offset = 0.0
    for number, log in logs.items():
        steps = [entry for entry in log if "reward" in entry and "step" in entry]
        if not number or not steps:
            continue
        borders[offset + steps[0]["step"]] = f"round {number}"
        for key in keys:
            points[key] += [(offset + entry["step"], entry.get(key)) for entry in steps]
            points[key].append((offset + steps[-1]["step"], None))  # lift the pen
        offset += steps[-1]["step"]
    rewards = [Line(name, points[key]) for key, name in REWARDS.items()]
    kl, entropy = Line("KL", points["kl"]), Line("entropy", points["entropy"])
    charts = [
        line_chart("Rewards", rewards, "batch means over training steps", (0, 1), None, borders),
        line_chart("KL", [kl], "from the anchor, over steps", None, None, borders),
        line_chart("Entropy", [entropy], "nats a token, over steps", None, None, borders),
    ]
    return [chart for chart in charts if chart]


def line_chart(
    title: str,
    lines: Sequence[Line],
    note: str = "",
    limits: tuple[float, float] | None = None,
    x_labels: dict[float, str] | None = None,
    borders: dict[float, str] | None = None,
) -> Chart | None:
    """Lay out lines on common axes; None where no line has a value.

    `limits` fixes the y axis, else it fits the values; `x_labels` and `borders` map an x to its
    text, without labels the x axis has round numbers.
    """
    lines = [line for line in lines if any(_is_number(y) for _, y in line.points)]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y is not None and math.isfinite(y)]
    y_values = ticks(*(limits or (min(ys), max(ys))), count=4)
    digits = decimals(y_values)
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = y_values[0], y_values[-1]

    inset = 24 if x_labels else 8  # room for half of a label beside the outermost points

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low)
        return (
            round(LEFT + inset + across * (WIDTH - LEFT - RIGHT - 2 * inset), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    if x_labels is None:
        x_labels = {x: f"{x:g}" for x in ticks(x_low, x_high, 5) if x_low <= x <= x_high}
    return Chart(
        title,
        note,
        [_drawn(line, place) for line in lines],
        [Mark(LEFT, place(x_low, y)[1], f"{y:.{digits}f}") for y in y_values],
        [Mark(place(x, y_low)[0], HEIGHT - BOTTOM, text) for x, text in x_labels.items()],
        [Mark(place(x, y_low)[0], TOP, text) for x, text in (borders or {}).items()],
    )


def round_labels(last: int) -> dict[float, str]:
    """Return what stands under an axis of the rounds 0 to `last`, place -> text."""
    word = "" if last >= MANY_ROUNDS else "round "
    return {float(number): f"{word}{number}" for number in range(last + 1)}


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` + 1 round numbers that enclose [low, high], at least two."""
    if high <= low:
        low, high = low - max(abs(low) * 0.05, 0.005), high + max(abs(high) * 0.05, 0.005)
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def decimals(values: Sequence[float]) -> int:
    """Return how many digits after the point write every one of `values` out, as ticks have."""
    exponents = [Decimal(str(value)).normalize().as_tuple().exponent for value in values]
    return max(0, *(-exponent for exponent in exponents if isinstance(exponent, int)))


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _drawn(line: Line, place: Callable[[float, float], tuple[float, float]]) -> DrawnLine:
    pieces, markers, is_pen_up = [], [], True
    for x, y in line.points:
        if y is None or not math.isfinite(y):
            is_pen_up = True
            continue
        left, top = place(x, y)
        pieces.append(f"{'M' if is_pen_up else 'L'}{left} {top}")
        markers.append(Mark(left, top, f"{y:.3f}"))
        is_pen_up = False
    last = markers[-1] if markers else None
    return DrawnLine(
        line.name,
        " ".join(pieces),
        markers if len(markers) <= MAX_MARKED_POINTS else [],
        last,
    )
