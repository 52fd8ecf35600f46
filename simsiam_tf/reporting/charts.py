"""Charts as Vega-Lite specifications: pictures for a page without script, and for files.

A specification is a dictionary, https://vega.github.io/vega-lite/docs. Its colours are those of the
page around it, in light and in dark, because they are CSS variables of page.html. Where a page may
run its script, page.js draws the same specification again, with values on hover, zoom and more.
"""

import colorsys
import copy
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import vl_convert

from simsiam_tf.reporting.html_page import escape

MAX_MARKERS = 40  # a curve of at most so many points has a dot at each point
# As different as ten colours can be (the nearest two are 0.18 apart in OKLab) that have a contrast
# of 3:1 with a light and with a dark page. Further classes have other shapes in the same colours.
_PALETTE = (
    "#005aff", "#b44b00", "#008700", "#ff1eff", "#007896",
    "#ff5a78", "#961eff", "#969669", "#b43c96", "#9687e1",
)  # fmt: skip
_WIDTH, _HEIGHT = 300, 170
_MAP_SIZE = 420
_MAX_POINTS = 600  # of a curve; more cannot be seen
_RIGHT_END = {"expr": "width"}  # page.js gives a chart the width of its element
_SHAPES = ("circle", "triangle-up", "square", "diamond", "cross", "triangle-down")
_LUMINANCE_WEIGHTS = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue (sRGB)
SINGLE = "var(--curve)"  # the colour of what is alone in its chart
# The variables' values on a light page, for pictures in files.
_LIGHT = {
    "var(--curve)": "#2563a8",
    "var(--ink)": "#1d2329",
    "var(--soft)": "#667079",
    "var(--line)": "#e3e5e4",
    "var(--good)": "#1d7a4b",
    "var(--bad)": "#b3342d",
    "var(--card)": "#ffffff",
}
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "symbolSize": 90,
        "labelLimit": 220,
    },
    "title": {"color": "var(--ink)", "fontWeight": "normal", "fontSize": 13},
}

Point = tuple[float, float]  # epoch and value
Spec = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve of a chart."""

    points: Sequence[Point]  # one or more, in order of the epoch
    name: str = ""  # shown while the pointer is on the curve
    color: str = SINGLE  # of CSS


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of a chart."""

    value: float
    name: str  # on the horizontal axis, where there is room
    text: str  # shown while the pointer is on the bar
    color: str = SINGLE  # of CSS


@dataclasses.dataclass(frozen=True)
class Interval:
    """One estimate of a chart, with its interval."""

    name: str  # beside it
    value: float
    half_width: float | None  # None: no interval is known
    text: str  # shown while the pointer is on it
    color: str = SINGLE  # of CSS


def line_chart(
    curves: Sequence[Curve],
    title: str,
    *,
    low: float | None = None,
    high: float | None = None,
    levels: Mapping[str, float] | None = None,
    seams: Sequence[float] = (),
) -> Spec:
    """Returns a chart of curves over the epochs.

    Args:
      curves: one or more; their names differ.
      title: of the vertical axis, with the unit.
      low: a value that the vertical axis reaches down to.
      high: a value that the vertical axis reaches up to.
      levels: values to mark by a dashed line, with the text above each line as the key.
      seams: epochs to mark by a dashed line.
    """
    ends = [value for curve in curves for _, value in curve.points]
    ends += [value for value in (low, high) if value is not None]
    ends += (levels or {}).values()
    bottom, top = min(ends), max(ends)
    if bottom == top:
        bottom, top = bottom - (abs(bottom) / 10 or 1), top + (abs(top) / 10 or 1)
    rows = [
        {"epoch": epoch, "value": value, "run": curve.name}
        for curve in curves
        for epoch, value in _thinned(curve.points)
    ]
    is_marked = max(len(curve.points) for curve in curves) <= MAX_MARKERS
    color = {
        "field": "run",
        "type": "nominal",
        "scale": {
            "domain": [curve.name for curve in curves],
            "range": [curve.color for curve in curves],
        },
        "legend": None,
    }
    seen = [
        {"field": "epoch", "type": "quantitative", "format": ".4~g"},
        {"field": "value", "type": "quantitative", "format": ".4~g", "title": title},
    ]
    if len(curves) > 1:
        seen.insert(0, {"field": "run", "type": "nominal"})
    layers: list[Spec] = [
        {
            "data": {"values": [{"epoch": seam} for seam in seams]},
            "mark": {"type": "rule", "color": "var(--soft)", "strokeDash": [5, 4]},
            "encoding": {"y": None},
        },
        *_level_layers(levels or {}),
        {"mark": {"type": "line", "strokeWidth": 1.75}, "encoding": {"color": color}},
        {
            "name": "values",
            "mark": {"type": "circle", "size": 22, "opacity": 1 if is_marked else 0},
            "encoding": {"color": color, "tooltip": seen},
        },
    ]
    return _chart(
        {
            "width": _WIDTH,
            "height": _HEIGHT,
            "data": {"values": rows},
            "encoding": {
                "x": {
                    "field": "epoch",
                    "type": "quantitative",
                    "title": "epoch",
                    "axis": {"tickCount": 5, "grid": False},
                },
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "title": title,
                    "axis": {"tickCount": 5},
                    "scale": {"domain": [bottom, top], "zero": False, "nice": True},
                },
            },
            "layer": layers,
        }
    )


def _level_layers(levels: Mapping[str, float]) -> list[Spec]:
    if not levels:
        return []
    data = {"values": [{"value": level, "text": text} for text, level in levels.items()]}
    text = {
        "type": "text",
        "x": _RIGHT_END,
        "align": "right",
        "dy": -5,
        "fontSize": 11,
        "color": "var(--soft)",
    }
    return [
        {
            "data": data,
            "mark": {"type": "rule", "color": "var(--soft)", "strokeDash": [2, 3]},
            "encoding": {"x": None},
        },
        {
            "data": data,
            "mark": text,
            "encoding": {"x": None, "text": {"field": "text", "type": "nominal"}},
        },
    ]


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


def bar_chart(bars: Sequence[Bar], x_title: str, y_title: str) -> Spec:
    """Returns a chart of bars from 0 up.

    Args:
      bars: one or more, from left to right.
      x_title: of the horizontal axis, with the unit.
      y_title: of the vertical axis, with the unit.
    """
    rows = [
        {"number": number, "name": bar.name, "value": bar.value, "text": bar.text}
        for number, bar in enumerate(bars)
    ]
    names = [bar.name for bar in bars]
    color = {
        "field": "number",
        "type": "ordinal",
        "scale": {"range": [bar.color for bar in bars]},
        "legend": None,
    }
    return _chart(
        {
            "width": _WIDTH,
            "height": _HEIGHT,
            "data": {"values": rows},
            "mark": {"type": "bar", "minBandSize": 1},
            "encoding": {
                "x": {
                    "field": "number",
                    "type": "ordinal",
                    "title": x_title,
                    "axis": {
                        # The names, because two bars may have the same one.
                        "labelExpr": f"{json.dumps(names)}[datum.value]",
                        "labelOverlap": "greedy",
                        "labelAngle": 0 if max(map(len, names)) <= 4 else -45,
                        "labelLimit": 90,
                        "ticks": False,
                    },
                },
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "title": y_title,
                    "axis": {"tickCount": 4},
                },
                "color": color,
                # So that a bar that is not zero can be seen.
                "stroke": color,
                "strokeWidth": {"condition": {"test": "datum.value > 0", "value": 1}, "value": 0},
                "tooltip": {"field": "text", "type": "nominal"},
            },
        }
    )


def interval_chart(intervals: Sequence[Interval], title: str) -> Spec:
    """Returns a chart of estimates below each other, with their intervals and a line at 0.

    Args:
      intervals: one or more, from top to bottom; their names differ.
      title: of the horizontal axis, with the unit.
    """
    rows = [
        {
            "name": one.name,
            "value": one.value,
            "low": one.value - (one.half_width or 0),
            "high": one.value + (one.half_width or 0),
            "text": one.text,
            "color": one.color,
        }
        for one in intervals
    ]
    names = [one.name for one in intervals]
    color = {"field": "color", "type": "nominal", "scale": None}
    y = {
        "field": "name",
        "type": "nominal",
        "sort": names,
        "title": None,
        "axis": {"labelLimit": 0, "ticks": False, "domain": False, "labelColor": "var(--ink)"},
    }
    shown = {"color": color, "y": y, "tooltip": {"field": "text", "type": "nominal"}}
    low = {"field": "low", "type": "quantitative", "title": title, "axis": {"tickCount": 5}}
    return _chart(
        {
            "width": _WIDTH,
            "height": {"step": 22},
            "data": {"values": rows},
            "layer": [
                {
                    "data": {"values": [{"zero": 0}]},
                    "mark": {"type": "rule", "color": "var(--soft)"},
                    "encoding": {"x": {"field": "zero", "type": "quantitative", "title": title}},
                },
                {
                    "mark": {"type": "rule", "strokeWidth": 2},
                    "encoding": {**shown, "x": low, "x2": {"field": "high"}},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                    "encoding": {**shown, "x": {**low, "field": "value"}},
                },
            ],
        }
    )


def scatter(
    coordinates: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    facts: Sequence[Mapping[str, object]],
) -> Spec:
    """Returns a map of images: a mark for each, in the colour and shape of its class.

    Args:
      coordinates: `[N, 2] float`.
      labels: `[N] int`.
      class_names: names of the labels; empty: the images have no labels, and all marks look alike.
      facts: of each image; `image` is the URL of its picture, shown while the pointer is on it.
    """
    rows = [
        {
            "x": round(float(x), 3),
            "y": round(float(y), 3),
            "class": class_names[label] if class_names else "",
            **fact,
        }
        for (x, y), label, fact in zip(coordinates, labels, facts, strict=True)
    ]
    used = [class_names[label] for label in sorted(set(labels.tolist()))] if class_names else []
    seen = [{"field": "image", "type": "nominal"}]
    encoding: Spec = {
        **{
            # The padding keeps the marks at the edges whole.
            name: {
                "field": name,
                "type": "quantitative",
                "axis": None,
                "scale": {"zero": False, "nice": False, "padding": 12},
            }
            for name in ("x", "y")
        },
        "color": {"value": SINGLE},
        "tooltip": seen,
    }
    if used:
        legend = {"title": None, "orient": "bottom", "columns": 5, "symbolLimit": 60}
        for channel, values in (
            ("color", [_PALETTE[number % len(_PALETTE)] for number in range(len(used))]),
            (
                "shape",
                [_SHAPES[number // len(_PALETTE) % len(_SHAPES)] for number in range(len(used))],
            ),
        ):
            encoding[channel] = {
                "field": "class",
                "type": "nominal",
                "scale": {"domain": used, "range": values},
                "legend": legend,
            }
        seen.insert(0, {"field": "class", "type": "nominal"})
    return _chart(
        {
            "width": _MAP_SIZE,
            "height": _MAP_SIZE,
            "data": {"values": rows},
            "mark": {"type": "point", "filled": True, "size": 42, "opacity": 0.85},
            "encoding": encoding,
        }
    )


def _chart(content: Spec) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "config": _CONFIG,
        **content,
    }


def column(charts: Sequence[Spec]) -> Spec:
    """Returns charts below each other."""
    return _chart({"vconcat": [_part(chart) for chart in charts]})


def row(charts: Sequence[tuple[str, Spec]]) -> Spec:
    """Returns line charts of the same runs beside each other, each below its title.

    A legend below the first names the runs.
    """
    parts = [_part(chart) | {"title": title} for title, chart in charts]
    for layer in parts[0]["layer"]:
        if "color" in layer.get("encoding", {}):
            layer["encoding"]["color"]["legend"] = {"title": None, "orient": "bottom"}
    return _chart({"hconcat": parts})


def _part(chart: Spec) -> Spec:
    """Returns a chart as a part of another one, in which `width` is no name of its own width."""
    own = {name: value for name, value in chart.items() if name not in ("$schema", "config")}
    part = copy.deepcopy(own)
    for layer in part.get("layer", []):
        if layer["mark"].get("x") == _RIGHT_END:
            layer["mark"]["x"] = part["width"]
    return part


def element(chart: Spec, label: str) -> str:
    """Returns a chart as HTML: a picture of it, and its specification for the page's script.

    Args:
      chart: the specification.
      label: read out by screen readers.
    """
    # "<" ends no script, and begins no comment, where it is written as an escape of JSON.
    text = json.dumps(chart, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="chart" role="img" aria-label="{escape(label)}">'
        f"{vl_convert.vegalite_to_svg(chart)}</div>"
        f'<script type="application/json">{text}</script>'
    )


def write(chart: Spec, path: str) -> None:
    """Writes a chart as a picture: .svg, .pdf, .jpg or .png by the name of the file.

    Raises:
      ValueError: the name has another ending.
      OSError: the file cannot be written.
    """
    text = json.dumps(chart)
    for variable, color in _LIGHT.items():
        text = text.replace(variable, color)
    light = json.loads(text)
    light["config"]["background"] = "white"
    light["padding"] = 12
    makers = {
        "svg": lambda: vl_convert.vegalite_to_svg(light).encode(),
        "pdf": lambda: vl_convert.vegalite_to_pdf(light),
        "jpg": lambda: vl_convert.vegalite_to_jpeg(light, scale=2),
        "png": lambda: vl_convert.vegalite_to_png(light, scale=2),
    }
    ending = path.rpartition(".")[2].lower()
    if ending not in makers:
        raise ValueError(f"its name must end with .{', .'.join(makers)}")
    with open(path, "wb") as file:
        file.write(makers[ending]())


@functools.cache
def scripts() -> tuple[str, str]:
    """Returns the scripts of a page with charts: the library that draws them, and page.js."""
    own = pathlib.Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    return vl_convert.javascript_bundle(), own  # type: ignore[call-arg]


def colors(count: int) -> list[str]:
    """Returns distinct colours, `#rrggbb`, that are readable on light and on dark pages.

    More than ten go around the colour circle, and adjacent ones differ in luminance as well.
    """
    if count <= len(_PALETTE):
        return list(_PALETTE[:count])
    return [_color(index / count, (0.17, 0.3)[index % 2]) for index in range(count)]


def _color(hue: float, luminance: float) -> str:
    """Returns the most vivid colour of a hue that has the relative luminance of WCAG."""
    rgb = np.array(colorsys.hsv_to_rgb(hue, 1, 1))
    chroma = rgb - rgb @ _LUMINANCE_WEIGHTS  # adding it to a grey keeps the luminance
    bounds = np.where(chroma > 0, 1 - luminance, -luminance)
    linear = luminance + chroma * np.min(bounds / chroma)
    return "#" + "".join(f"{round(255 * max(part, 0) ** (1 / 2.2)):02x}" for part in linear)
