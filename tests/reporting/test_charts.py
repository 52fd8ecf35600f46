"""Charts: coordinates follow the data, texts are escaped, colours are readable."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from simsiam_tf.reporting import charts
from simsiam_tf.reporting.charts import Curve


def draw(points, title="title", **options):
    return charts.line_chart([Curve(points)], title, **options)


def curves_of(svg):
    """Returns the coordinates of each curve."""
    paths = ElementTree.fromstring(svg).findall("g/path[@class='curve']")
    return [
        [tuple(map(float, xy.split())) for xy in path.get("d")[1:].split("L")] for path in paths
    ]


def curve_of(svg):
    (curve,) = curves_of(svg)
    return curve


def test_the_coordinates_of_a_curve_are_linear_in_epoch_and_value():
    (x0, y0), (x1, y1), (x2, y2) = curve_of(draw([(0, 0.0), (1, 1.0), (2, 4.0)]))
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx((y1 - y2) / 3, abs=0.2)
    assert y2 < y1 < y0  # SVG's y axis points down


def test_several_curves_share_the_axes_and_keep_their_names_and_colours():
    curves = [
        Curve([(0, 1.0), (4, 2.0)], "first", "#aa0000"),
        Curve([(0, 2.0), (2, 1.0)], "second", "#0000aa"),
    ]
    svg = charts.line_chart(curves, "title")
    first, second = curves_of(svg)
    assert first[0][1] == second[1][1]
    assert first[1][1] == second[0][1]
    assert second[1][0] == pytest.approx((first[0][0] + first[1][0]) / 2, abs=0.1)
    groups = ElementTree.fromstring(svg).findall("g")
    assert [group.find("title").text for group in groups] == ["first", "second"]
    assert [group.get("style") for group in groups] == ["color:#aa0000", "color:#0000aa"]


def test_a_level_is_drawn_at_its_value():
    svg = draw([(0, 0.3), (2, 0.3)], low=0, high=1.1, levels={"below 0.3": 0.3})
    (_, y), _ = curve_of(svg)
    (level,) = ElementTree.fromstring(svg).findall("path[@class='level']")
    assert f" {y:.1f}H" in level.get("d")
    assert "below 0.3" in svg


def test_a_seam_is_drawn_at_its_epoch():
    svg = draw([(0, 0.3), (2, 0.5), (4, 0.6)], seams=[2])
    _, (x, _), _ = curve_of(svg)
    (seam,) = ElementTree.fromstring(svg).findall("path[@class='seam']")
    assert seam.get("d").startswith(f"M{x:.1f} ")
    assert "V" in seam.get("d")


@pytest.mark.parametrize("points", [[(0, 1.0)], [(0, 0.0)], [(1, -0.5), (2, -0.5)], [(3, 1e-9)]])
def test_a_constant_curve_is_drawn(points):
    svg = draw(points)
    assert "nan" not in svg
    assert "inf" not in svg
    assert len(curve_of(svg)) == len(points)


def test_small_values_have_ticks():
    svg = draw([(0, 0.0), (1, 3e-7)], low=0)
    assert re.search(">[123]e-07<", svg)


@pytest.mark.parametrize(("count", "markers"), [(1, 1), (40, 40), (41, 1)])
def test_every_point_of_a_short_curve_and_the_last_point_of_a_long_one_is_marked(count, markers):
    assert draw([(epoch, 1.0) for epoch in range(count)]).count("<circle") == markers


def test_a_long_curve_is_thinned_and_keeps_its_extremes():
    points = [(step / 100, 1.0) for step in range(100_000)]
    points[51_234] = (512.34, 0.1)
    xy = curve_of(draw(points, low=0))
    assert len(xy) <= 600
    assert xy == sorted(xy, key=lambda pair: pair[0])
    lowest = max(xy, key=lambda pair: pair[1])
    others = [y for x, y in xy if (x, y) != lowest]
    assert lowest[1] > max(others) + 50


def test_texts_are_escaped():
    svg = charts.line_chart([Curve([(0, 1.0)], "<b>")], 'a"<b>', levels={"<i>": 1.0})
    svg += charts.scatter(np.eye(2), np.array([0, 1]), ("<x>", "&"), "t")
    svg += charts.legend(("<x>", "&"))
    assert not re.search("<[bix]>", svg)
    assert "&lt;x&gt;" in svg


def test_a_map_has_a_dot_for_each_image_in_the_colour_of_its_class():
    coordinates = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    svg = charts.scatter(coordinates, np.array([1, 0, 1]), ("a", "b"), "map")
    groups = {
        group.find("title").text: (group.get("style"), len(group.findall("circle")))
        for group in ElementTree.fromstring(svg).findall("g")
    }
    assert {name: count for name, (_, count) in groups.items()} == {"a": 1, "b": 2}
    legend = charts.legend(("a", "b"))
    for name, (style, _) in groups.items():
        assert re.search(f'style="{style}"[^>]*>●</span> {name}</li>', legend)


def test_a_map_without_labels_has_one_colour_and_no_legend():
    svg = charts.scatter(np.eye(3)[:, :2], np.array([-1, -1, -1]), (), "map")
    assert svg.count("<circle") == 3
    assert "style=" not in svg
    assert charts.legend(()) == ""


def test_more_than_twenty_classes_have_no_legend():
    assert charts.legend(tuple(map(str, range(20)))).count("<li>") == 20
    assert charts.legend(tuple(map(str, range(21)))) == ""


def luminance(color):
    """The relative luminance of WCAG 2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("count", [1, 2, 7, 21])
def test_colours_differ_and_contrast_with_light_and_dark_pages(count):
    found = charts.colors(count)
    assert len(set(found)) == count
    for color in found:
        assert re.fullmatch("#[0-9a-f]{6}", color)
        assert 1.05 / (luminance(color) + 0.05) > 2.8  # with #ffffff
        assert (luminance(color) + 0.05) / (luminance("#1b1f23") + 0.05) > 3


def bars_of(svg):
    """Returns (left, top, width, height) of each bar."""
    return [
        tuple(float(bar.get(name)) for name in ("x", "y", "width", "height"))
        for bar in ElementTree.fromstring(svg).findall("g/rect")
    ]


def test_bars_stand_on_one_line_and_are_as_high_as_their_values():
    values = [30, 0, 60]
    svg = charts.bar_chart([charts.Bar(value, "", "") for value in values], "title")
    heights = [height for _, _, _, height in bars_of(svg)]
    assert heights[1] == 0
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.2)
    assert len({round(top + height, 1) for _, top, _, height in bars_of(svg)}) == 1
    lefts = [left for left, _, _, _ in bars_of(svg)]
    assert lefts[1] - lefts[0] == pytest.approx(lefts[2] - lefts[1], abs=0.02)


def test_a_small_value_can_be_seen():
    svg = charts.bar_chart([charts.Bar(1, "a", ""), charts.Bar(10**6, "b", "")], "title")
    assert bars_of(svg)[0][3] == 1


@pytest.mark.parametrize(("count", "length"), [(3, 4), (40, 4), (40, 20), (120, 60)])
def test_names_below_bars_do_not_overlap(count, length):
    bars = [charts.Bar(1, "n" * length, f"<{number}>") for number in range(count)]
    svg = charts.bar_chart(bars, "title")
    assert svg.count("<title>&lt;") == count
    tree = ElementTree.fromstring(svg)
    places = [float(text.get("x")) for text in tree.findall("text[@class='middle']")]
    assert all(right - left > 5 * length for left, right in itertools.pairwise(places))
    assert bool(places) == (length < 60)  # a name that has no room is only shown by the pointer
