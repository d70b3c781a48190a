"""Curves as vector graphics inside the page: axes with units, a faint raw line, a smoothed one on top."""

import math
from dataclasses import dataclass

import numpy as np

from genseg.report.html import Html, join, tag
from genseg.report.reading import Points

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 38
MOST = 240  # points of one line


@dataclass(frozen=True)
class Panel:
    """One chart: title, unit of the y axis, {name for people: points}, how to read it, fixed y range if any."""

    title: str
    unit: str
    lines: dict[str, Points]
    reading: str
    bounds: tuple[float, float] | None = None


def thin(points: Points) -> Points:
    """At most MOST points: means over equal runs of steps."""
    if len(points) <= MOST:
        return points
    runs = np.array_split(np.array(points, dtype=float), MOST)
    return [(int(run[:, 0].mean()), float(run[:, 1].mean())) for run in runs]


def smoothed(points: Points) -> Points:
    """A centred running mean over about a fifteenth of the points."""
    reach = len(points) // 30
    if reach < 1:
        return points
    values = np.array([value for _, value in points])
    return [(step, float(values[max(i - reach, 0) : i + reach + 1].mean())) for i, (step, _) in enumerate(points)]


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that cover low..high."""
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(panel: Panel) -> Html:
    """A panel as figure: heading, legend with the last values, the drawing, the sentence on how to read it."""
    lines = {name: thin(points) for name, points in panel.lines.items() if points}
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    low, high = panel.bounds or _padded(values)
    left, right = (min(steps), max(steps)) if max(steps) > min(steps) else (min(steps) - 1, max(steps) + 1)

    def x(step: float) -> float:
        return LEFT + (step - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - min(max(value, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = [_axes(panel, (left, right), (low, high), x, y)]
    for i, points in enumerate(lines.values()):
        smooth = smoothed(points)
        if smooth is not points:
            drawn.append(_line(points, x, y, class_=f"line faint s{i % 6}"))
        drawn.append(_line(smooth, x, y, class_=f"line s{i % 6}"))
        if len(points) < 40:
            drawn += [
                tag("circle", cx=f"{x(s):.1f}", cy=f"{y(v):.1f}", r=2.4, class_=f"dot s{i % 6}") for s, v in points
            ]
    legend = tag(
        "ul", *(_key(i, name, smoothed(points)) for i, (name, points) in enumerate(lines.items())), class_="keys"
    )
    picture = tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=_alt(panel, lines))
    return tag("figure", tag("h3", panel.title), legend, picture, tag("figcaption", panel.reading), class_="chart")


def _padded(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    low = 0.0 if low >= 0 and low < 0.5 * high else low
    margin = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
    return (low if low == 0 else low - margin), high + margin


def _alt(panel: Panel, lines: dict[str, Points]) -> str:
    said = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in lines.items())
    return f"Curve: {panel.title}. {said}."


def _key(i: int, name: str, points: Points) -> Html:
    return tag("li", tag("span", class_=f"key s{i % 6}", aria_hidden="true"), f"{name}: {points[-1][1]:.3g}")


def _line(points: Points, x, y, **attributes: object) -> Html:
    return tag("polyline", points=" ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points), **attributes)


def _axes(panel: Panel, across: tuple[float, float], up: tuple[float, float], x, y) -> Html:
    parts = []
    for value in ticks(*up):
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y(value):.1f}", y2=f"{y(value):.1f}", class_="grid"))
        parts.append(tag("text", f"{value:g}", x=LEFT - 6, y=f"{y(value) + 4:.1f}", text_anchor="end"))
    for step in ticks(*across, wanted=5):
        if step == int(step):
            parts.append(tag("text", f"{step:g}", x=f"{x(step):.1f}", y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(tag("text", "training step", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle"))
    parts.append(tag("text", panel.unit, x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle})"))
    return join(parts)


def sparkline(points: Points, bounds: tuple[float, float], name: str) -> Html:
    """A line without axes, 120 × 28, for a table row."""
    points = thin(points)
    low, high = bounds
    span, first, last = max(high - low, 1e-9), points[0][0], points[-1][0]

    def x(step: float) -> float:
        return 2 + (step - first) / max(last - first, 1) * 116

    def y(value: float) -> float:
        return 25 - (value - low) / span * 22

    label = f"{name}: from {points[0][1]:.2f} to {points[-1][1]:.2f}"
    return tag(
        "svg", _line(points, x, y, class_="line s0"), viewBox="0 0 120 28", class_="spark", role="img", aria_label=label
    )
