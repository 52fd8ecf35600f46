"""Curves and maps as SVG, which takes its colours from the page around it."""

import colorsys
import html

from matplotlib.ticker import MaxNLocator

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 352, 10, 164
_MOST_POINTS = 600
_MAP_SIZE = 400
_MANY_CLASSES = 20  # above which colours cannot be told apart by a legend


def curve(points, title, *, low=None, high=None, lines=None):
    """A curve over the epochs.

    Args:
      points: (epoch, value) in order, one or more.
      title: what it shows.
      low: a value that the axis reaches down to.
      high: a value that the axis reaches up to.
      lines: {text: value} of levels to draw across.
    """
    values = [value for _, value in points]
    values += [value for value in (low, high) if value is not None]
    x_ticks, x_of = _axis(0, max(points[-1][0], 1e-9), _LEFT, _RIGHT, 5)
    y_ticks, y_of = _axis(min(values), max(values), _BOTTOM, _TOP, 4)
    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{tick:.6g}</text>')
    for tick in x_ticks:
        x = x_of(tick)
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 18}" class="middle">{tick:.6g}</text>')
    for text, level in (lines or {}).items():
        y = y_of(level)
        parts.append(f'<path class="level" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(
            f'<text x="{_RIGHT}" y="{y - 5:.1f}" class="end level">{html.escape(text)}</text>'
        )
    places = [(x_of(epoch), y_of(value)) for epoch, value in _thinned(points)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts.append(f'<path class="curve" d="M{path}"/>')
    x, y = places[-1]
    parts.append(f'<circle class="now" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return _svg(_WIDTH, _HEIGHT, title, parts)


def _axis(low, high, start, end, num_ticks):
    """Round ticks between two values, and value → place between `start` and `end`."""
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)

    def place(value):
        return start + (value - low) / (high - low) * (end - start)

    slack = (high - low) / 1e6
    ticks = MaxNLocator(num_ticks, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = [0.0 if abs(tick) < slack else tick for tick in ticks]
    return [tick for tick in ticks if low - slack <= tick <= high + slack], place


def _thinned(points):
    """At most so many points that a screen shows them; what sticks out stays."""
    size = -(-len(points) // (_MOST_POINTS // 2))
    if size < 3:
        return points
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def scatter(places, labels, class_names, title):
    """A map of images: a dot each, coloured by class where there are classes.

    Args:
      places: `[N, 2]`.
      labels: `[N]` int.
      class_names: of the labels; empty: none.
      title: what it shows.
    """
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = 12 + (places - low) / (high - low) * (_MAP_SIZE - 24)
    parts = []
    for label in sorted(set(labels.tolist())):
        colour = f' fill="{_colour(label, len(class_names))}"' if class_names else ""
        name = f"<title>{html.escape(class_names[label])}</title>" if class_names else ""
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in scaled[labels == label]
        )
        parts.append(f'<g class="dots"{colour}>{name}{dots}</g>')
    return _svg(_MAP_SIZE, _MAP_SIZE, title, parts)


def legend(class_names):
    """The colours of a map's classes, as HTML; empty where there are none, or too many."""
    if not 0 < len(class_names) <= _MANY_CLASSES:
        return ""
    entries = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="5" '
        f'fill="{_colour(label, len(class_names))}"/></svg>{html.escape(name)}</li>'
        for label, name in enumerate(class_names)
    )
    return f'<ul class="legend">{entries}</ul>'


def _colour(label, num_classes):
    """Around the colour circle, neighbours a little apart in lightness."""
    lightness = (0.5, 0.64)[label % 2]
    rgb = colorsys.hls_to_rgb(label / num_classes, lightness, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _svg(width, height, title, parts):
    title = html.escape(title)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )
