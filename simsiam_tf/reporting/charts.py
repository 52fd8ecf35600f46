"""Charts as SVG elements, which take their light or dark colours from the page around them."""

import colorsys
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from simsiam_tf.reporting.html_page import dot, escape

MAX_MARKERS = 40  # a curve of at most so many points has a dot at each point
_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 352, 10, 164
_CHARACTER = 6  # mean width of a character below an axis
_MAX_POINTS = 600  # of a curve; more cannot be seen
_MAP_SIZE = 400
_MAX_LEGEND = 20  # classes; the colours of more classes look alike
_LUMINANCE_WEIGHTS = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue (sRGB)

Point = tuple[float, float]  # epoch and value


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve of a chart."""

    points: Sequence[Point]  # one or more, in order of the epoch
    name: str = ""  # shown while the pointer is on the curve
    color: str = ""  # of CSS; empty: the page's colour for a single curve


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of a chart."""

    value: float
    name: str  # on the horizontal axis, where there is room
    text: str  # shown while the pointer is on the bar
    color: str = ""  # of CSS; empty: the page's colour for a single curve


def bar_chart(bars: Sequence[Bar], title: str) -> str:
    """Draws bars from 0 up.

    Args:
      bars: one or more, from left to right.
      title: read out by screen readers.
    """
    y_ticks, y_of = _axis(0, max(bar.value for bar in bars) or 1, _BOTTOM, _TOP, 4)
    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{tick:.6g}</text>')
    width = (_RIGHT - _LEFT) / len(bars)
    # A name is centred below its bar, so that it has the room up to the next name that is shown.
    name_width = _CHARACTER * (2 + max(len(bar.name) for bar in bars))
    shown_every = math.ceil(name_width / width)
    for number, bar in enumerate(bars):
        left = _LEFT + number * width
        y = y_of(bar.value)
        # Tall enough to see that it is not zero.
        height = max(_BOTTOM - y, 1.0) if bar.value else 0.0
        rectangle = (
            f'<rect x="{left + 0.08 * width:.2f}" y="{_BOTTOM - height:.1f}" '
            f'width="{0.84 * width:.2f}" height="{height:.1f}"/>'
        )
        parts.append(_group("series", bar.text, bar.color, rectangle))
        if number % shown_every == 0 and name_width <= _RIGHT - _LEFT:
            at = f'x="{left + width / 2:.1f}" y="{_BOTTOM + 18}"'
            parts.append(f'<text {at} class="middle">{escape(bar.name)}</text>')
    return _svg(_WIDTH, _HEIGHT, title, parts)


def line_chart(
    curves: Sequence[Curve],
    title: str,
    *,
    low: float | None = None,
    high: float | None = None,
    levels: Mapping[str, float] | None = None,
    seams: Sequence[float] = (),
) -> str:
    """Draws curves over the epochs.

    Args:
      curves: one or more.
      title: read out by screen readers.
      low: a value that the vertical axis reaches down to.
      high: a value that the vertical axis reaches up to.
      levels: values to mark by a dashed line, with the text above each line as the key.
      seams: epochs to mark by a dashed line.
    """
    values = [value for curve in curves for _, value in curve.points]
    values += [value for value in (low, high) if value is not None]
    last_epoch = max(curve.points[-1][0] for curve in curves)
    x_ticks, x_of = _axis(0, max(last_epoch, 1e-9), _LEFT, _RIGHT, 5)
    y_ticks, y_of = _axis(min(values), max(values), _BOTTOM, _TOP, 4)
    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{tick:.6g}</text>')
    for tick in x_ticks:
        x = x_of(tick)
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 18}" class="middle">{tick:.6g}</text>')
    for text, level in (levels or {}).items():
        y = y_of(level)
        parts.append(f'<path class="level" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_RIGHT}" y="{y - 5:.1f}" class="end level">{escape(text)}</text>')
    parts += [f'<path class="seam" d="M{x_of(seam):.1f} {_TOP}V{_BOTTOM}"/>' for seam in seams]
    for curve in curves:
        xy = [(x_of(epoch), y_of(value)) for epoch, value in _thinned(curve.points)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in xy)
        marked = xy if len(xy) <= MAX_MARKERS else xy[-1:]
        markers = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in marked)
        content = f'<path class="curve" d="M{path}"/>{markers}'
        parts.append(_group("series", curve.name, curve.color, content))
    return _svg(_WIDTH, _HEIGHT, title, parts)


def _axis(
    low: float, high: float, start: float, end: float, num_ticks: int
) -> tuple[list[float], Callable[[float], float]]:
    """Returns round ticks between two values, and the map from a value to its coordinate."""
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)

    def coordinate(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    slack = (high - low) / 1e6
    ticks = MaxNLocator(num_ticks, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = [0.0 if abs(tick) < slack else tick for tick in ticks]
    return [tick for tick in ticks if low - slack <= tick <= high + slack], coordinate


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Returns as many points as can be seen; the lowest and highest of each stretch remain."""
    size = -(-len(points) // (_MAX_POINTS // 2))
    if size < 3:
        return points
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def scatter(
    coordinates: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str
) -> str:
    """Draws a dot for each image, in the colour of its class.

    Args:
      coordinates: `[N, 2]` float.
      labels: `[N]` int.
      class_names: names of the labels; empty: the images have no labels, and all dots look alike.
      title: read out by screen readers.
    """
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    scaled = 12 + (coordinates - low) / (high - low) * (_MAP_SIZE - 24)
    class_colors = colors(len(class_names))
    parts = []
    for label in sorted(set(labels.tolist())):
        name, color = (class_names[label], class_colors[label]) if class_names else ("", "")
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in scaled[labels == label]
        )
        parts.append(_group("series dots", name, color, dots))
    return _svg(_MAP_SIZE, _MAP_SIZE, title, parts)


def legend(class_names: Sequence[str]) -> str:
    """Returns the class colours of `scatter` as HTML; empty without classes or with over 20."""
    if not 0 < len(class_names) <= _MAX_LEGEND:
        return ""
    class_colors = colors(len(class_names))
    entries = "".join(
        f"<li>{dot(color)} {escape(name)}</li>"
        for name, color in zip(class_names, class_colors, strict=True)
    )
    return f'<ul class="legend">{entries}</ul>'


def colors(count: int) -> list[str]:
    """Returns distinct colours, `#rrggbb`, that are readable on light and on dark pages.

    They go around the colour circle; adjacent ones differ in luminance as well.
    """
    return [_color(index / count, (0.17, 0.3)[index % 2]) for index in range(count)]


def _color(hue: float, luminance: float) -> str:
    """Returns the most vivid colour of a hue that has the relative luminance of WCAG."""
    rgb = np.array(colorsys.hsv_to_rgb(hue, 1, 1))
    chroma = rgb - rgb @ _LUMINANCE_WEIGHTS  # adding it to a grey keeps the luminance
    bounds = np.where(chroma > 0, 1 - luminance, -luminance)
    linear = luminance + chroma * np.min(bounds / chroma)
    return "#" + "".join(f"{round(255 * max(part, 0) ** (1 / 2.2)):02x}" for part in linear)


def _group(kind: str, name: str, color: str, content: str) -> str:
    style = f' style="color:{color}"' if color else ""
    tooltip = f"<title>{escape(name)}</title>" if name else ""
    return f'<g class="{kind}"{style}>{tooltip}{content}</g>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
