import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from simsiam_tf.reporting import charts


def curve_of(svg):
    """The places of a curve: [(x, y)]."""
    root = ElementTree.fromstring(svg)
    (path,) = root.findall("path[@class='curve']")
    return [tuple(map(float, place.split())) for place in path.get("d")[1:].split("L")]


def test_a_curve_goes_up_where_the_values_do():
    points = [(0, 0.0), (1, 1.0), (2, 4.0)]
    places = curve_of(charts.curve(points, "title"))
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx((y1 - y2) / 3, abs=0.2)
    assert y2 < y1 < y0  # up is a smaller y


def test_a_level_stands_where_the_axis_has_its_value():
    svg = charts.curve([(0, 0.3), (2, 0.3)], "std", low=0, high=1.1, lines={"under 0.3": 0.3})
    (_, y), _ = curve_of(svg)
    (level,) = ElementTree.fromstring(svg).findall("path[@class='level']")
    assert f" {y:.1f}H" in level.get("d")
    assert "under 0.3" in svg


@pytest.mark.parametrize("points", [[(0, 1.0)], [(0, 0.0)], [(1, -0.5), (2, -0.5)], [(3, 1e-9)]])
def test_one_value_makes_a_chart_too(points):
    svg = charts.curve(points, "title")
    assert "nan" not in svg
    assert "inf" not in svg
    assert len(curve_of(svg)) == len(points)


def test_small_values_have_ticks():
    svg = charts.curve([(0, 0.0), (1, 3e-7)], "rate", low=0)
    assert re.search(">[123]e-07<", svg)


def test_a_long_run_has_few_points_and_keeps_what_sticks_out():
    points = [(step / 100, 1.0) for step in range(100_000)]
    points[51_234] = (512.34, 0.1)
    places = curve_of(charts.curve(points, "title", low=0))
    assert len(places) <= 600
    assert places == sorted(places, key=lambda place: place[0])
    lowest = max(places, key=lambda place: place[1])
    others = [y for x, y in places if (x, y) != lowest]
    assert lowest[1] > max(others) + 50


def test_titles_are_escaped():
    svg = charts.curve([(0, 1.0)], 'a"<b>', lines={"<i>": 1.0})
    svg += charts.scatter(np.eye(2), np.array([0, 1]), ("<x>", "&"), "t")
    svg += charts.legend(("<x>", "&"))
    assert not re.search("<[bix]>", svg)
    assert "&lt;x&gt;" in svg


def test_a_map_has_a_dot_for_each_image_in_the_colour_of_its_class():
    places = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    svg = charts.scatter(places, np.array([1, 0, 1]), ("a", "b"), "map")
    groups = {
        group.find("title").text: (group.get("fill"), len(group.findall("circle")))
        for group in ElementTree.fromstring(svg).findall("g")
    }
    assert {name: count for name, (_, count) in groups.items()} == {"a": 1, "b": 2}
    legend = charts.legend(("a", "b"))
    for name, (colour, _) in groups.items():
        assert re.search(f'fill="{colour}"/></svg>{name}</li>', legend)


def test_a_map_without_labels_has_no_colours():
    svg = charts.scatter(np.eye(3)[:, :2], np.array([-1, -1, -1]), (), "map")
    assert svg.count("<circle") == 3
    assert "fill=" not in svg
    assert charts.legend(()) == ""


def test_colours_of_twenty_classes_differ():
    found = re.findall('fill="(#......)"', charts.legend(tuple(map(str, range(20)))))
    assert len(set(found)) == 20
    assert charts.legend(tuple(map(str, range(21)))) == ""
