"""Charts: coordinates follow the data, texts are escaped, colours are readable."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from simsiam_tf.reporting import charts
from simsiam_tf.reporting.charts import Curve

SVG = "{http://www.w3.org/2000/svg}"


def draw(points, **options):
    return marks(charts.line_chart([Curve(points)], "title", **options))


def marks(chart):
    """The marks of a drawn chart: {kind such as "line": [SVG element]}."""
    text = charts.element(chart, "label").split("</div>")[0]
    tree = ElementTree.fromstring(text[text.index("<svg") :])
    found = {}
    for group in tree.iter(f"{SVG}g"):
        kind = re.match(r"mark-(\w+) role-mark", group.get("class") or "")
        if kind:
            found.setdefault(kind[1], []).extend(group)
    return found


def points_of(path):
    """The coordinates of a drawn curve."""
    return [
        tuple(map(float, xy.split(","))) for xy in re.findall(r"[-\d.]+,[-\d.]+", path.get("d"))
    ]


def curve_of(drawn):
    (curve,) = drawn["line"]
    return points_of(curve)


def place_of(element):
    """The coordinates that an element is moved to."""
    return tuple(map(float, re.findall(r"[-\d.]+", element.get("transform"))[:2]))


def test_the_coordinates_of_a_curve_are_linear_in_epoch_and_value():
    (x0, y0), (x1, y1), (x2, y2) = curve_of(draw([(0, 0.0), (1, 1.0), (2, 4.0)]))
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx((y1 - y2) / 3, abs=0.2)
    assert y2 < y1 < y0  # SVG's y axis points down


def test_several_curves_share_the_axes_and_keep_their_colours():
    curves = [
        Curve([(0, 1.0), (4, 2.0)], "first", "#aa0000"),
        Curve([(0, 2.0), (2, 1.0)], "second", "#0000aa"),
    ]
    lines = marks(charts.line_chart(curves, "title"))["line"]
    first, second = map(points_of, lines)
    assert first[0][1] == second[1][1]
    assert first[1][1] == second[0][1]
    assert second[1][0] == pytest.approx((first[0][0] + first[1][0]) / 2, abs=0.1)
    assert [line.get("stroke") for line in lines] == ["#aa0000", "#0000aa"]


def test_a_level_is_drawn_at_its_value():
    drawn = draw([(0, 0.3), (2, 0.3)], low=0, high=1.1, levels={"below 0.3": 0.3, "healthy": 1.0})
    (_, y), _ = curve_of(drawn)
    low, high = map(place_of, drawn["rule"])
    assert low[1] == pytest.approx(y, abs=0.1)
    assert high[1] < y
    assert [text.text for text in drawn["text"]] == ["below 0.3", "healthy"]


def test_a_seam_is_drawn_at_its_epoch():
    drawn = draw([(0, 0.3), (2, 0.5), (4, 0.6)], seams=[2])
    _, (x, _), _ = curve_of(drawn)
    (seam,) = drawn["rule"]
    assert place_of(seam)[0] == pytest.approx(x, abs=0.1)


@pytest.mark.parametrize("points", [[(0, 1.0)], [(0, 0.0)], [(1, -0.5), (2, -0.5)], [(3, 1e-9)]])
def test_a_constant_curve_is_drawn_within_the_chart(points):
    drawn = draw(points)
    assert len(drawn["symbol"]) == len(points)
    for symbol in drawn["symbol"]:
        x, y = place_of(symbol)
        assert 0 <= x <= 300
        assert 10 < y < 160


@pytest.mark.parametrize(("count", "opacity"), [(1, "1"), (40, "1"), (41, "0")])
def test_every_point_of_a_short_curve_is_marked(count, opacity):
    symbols = draw([(epoch, 1.0) for epoch in range(count)])["symbol"]
    assert [symbol.get("opacity") for symbol in symbols] == [opacity] * count


def test_a_long_curve_is_thinned_and_keeps_its_extremes():
    points = [(step / 100, 1.0) for step in range(100_000)]
    points[51_234] = (512.34, 0.1)
    xy = curve_of(draw(points, low=0))
    assert len(xy) <= 600
    assert xy == sorted(xy, key=lambda pair: pair[0])
    lowest = max(xy, key=lambda pair: pair[1])
    others = [y for x, y in xy if (x, y) != lowest]
    assert lowest[1] > max(others) + 50


def test_texts_are_escaped_and_arrive_whole_in_the_specification():
    name = "</script><b>"
    chart = charts.line_chart([Curve([(0, 1.0)], name)], 'a"<b>', levels={"<i>": 1.0})
    html = charts.element(chart, 'a"<b>')
    assert not re.search("<[bi]>", html)
    assert html.count("</script>") == 1
    (text,) = re.findall(r'<script type="application/json">(.*)</script>', html)
    assert json.loads(text) == chart


def classes_of(count):
    """(colour, outline) of a mark of each class of a map."""
    names = [f"class {number:02}" for number in range(count)]
    chart = charts.scatter(np.random.rand(count, 2), np.arange(count), names, [{}] * count)
    return [(symbol.get("fill"), symbol.get("d")) for symbol in marks(chart)["symbol"]]


def test_classes_of_a_map_differ_in_colour_and_more_than_ten_in_shape_as_well():
    few, many = classes_of(10), classes_of(23)
    assert len({color for color, _ in few}) == 10
    assert len({shape for _, shape in few}) == 1
    assert len(set(many)) == 23
    assert len({color for color, _ in many}) == 10


def test_a_map_without_labels_has_one_colour_and_no_legend():
    chart = charts.scatter(np.eye(3)[:, :2], np.array([-1, -1, -1]), (), [{}] * 3)
    assert {symbol.get("fill") for symbol in marks(chart)["symbol"]} == {"var(--curve)"}
    assert "role-legend" not in charts.element(chart, "map")


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.png", b"\x89PNG"), ("a.svg", b"<svg"), ("a.pdf", b"%PDF"), ("a.jpg", b"\xff\xd8")],
)
def test_a_row_of_charts_is_written_as_a_picture(tmp_path, name, start):
    chart = charts.line_chart([Curve([(0, 1.0), (1, 2.0)], "a")], "loss")
    charts.write(charts.row([("Loss", chart), ("Loss again", chart)]), str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(start)


def test_the_label_of_a_level_is_at_the_right_end_also_in_a_row():
    chart = charts.line_chart([Curve([(0, 1.0), (1, 2.0)])], "std", levels={"healthy": 1})
    for drawn in (chart, charts.row([("Std", chart), ("Std again", chart)])):
        labels = [text for text in marks(drawn)["text"] if text.text == "healthy"]
        for label in labels:
            assert label.get("transform").startswith("translate(300,")
        assert labels


def intervals_of(chart):
    """Returns (left, right) of each interval, and the offset of each estimate and of 0."""
    drawn = marks(chart)
    zero, *rules = drawn["rule"]
    spans = [
        (float(re.search(r"\(([-\d.]+)", rule.get("transform"))[1]), float(rule.get("x2")))
        for rule in rules
    ]
    points = [
        float(re.search(r"\(([-\d.]+)", point.get("transform"))[1]) for point in drawn["symbol"]
    ]
    zero = float(re.search(r"\(([-\d.]+)", zero.get("transform"))[1])
    return [(start, start + width) for start, width in spans], points, zero


def test_an_interval_is_drawn_around_its_estimate_on_its_side_of_zero():
    chart = charts.interval_chart(
        [
            charts.Interval("above", 2.0, 1.0, "", "var(--good)"),
            charts.Interval("below", -3.0, 0.5, "", "var(--bad)"),
            charts.Interval("no interval", 1.0, None, ""),
        ],
        "margin",
    )
    spans, points, zero = intervals_of(chart)
    scale = (points[0] - zero) / 2
    assert scale > 0
    for (left, right), point, value, width in zip(
        spans, points, (2, -3, 1), (1, 0.5, 0), strict=True
    ):
        assert point == pytest.approx(zero + scale * value, abs=0.2)
        ends = sorted([left, right])
        assert ends == pytest.approx([point - scale * width, point + scale * width], abs=0.2)
    fills = [symbol.get("fill") for symbol in marks(chart)["symbol"]]
    assert fills == ["var(--good)", "var(--bad)", "var(--curve)"]


def test_a_column_keeps_the_colours_of_each_chart():
    charts_of = [
        charts.interval_chart([charts.Interval("a", 1.0, 0.5, "", color)], "margin")
        for color in ("#aa0000", "#00aa00")
    ]
    fills = [symbol.get("fill") for symbol in marks(charts.column(charts_of))["symbol"]]
    assert fills == ["#aa0000", "#00aa00"]


def test_a_picture_of_another_kind_is_refused_and_colours_of_the_page_are_resolved(tmp_path):
    chart = charts.line_chart([Curve([(0, 1.0), (1, 2.0)], "run a")], "loss")
    with pytest.raises(ValueError, match=r"must end with \.svg"):
        charts.write(charts.row([("Loss", chart)]), str(tmp_path / "a.gif"))
    charts.write(charts.row([("Loss", chart)]), str(tmp_path / "a.svg"))
    text = (tmp_path / "a.svg").read_text()
    assert "var(" not in text
    assert "run a" in text


def luminance(color):
    """The relative luminance of WCAG 2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("count", [1, 2, 7, 10, 21])
def test_colours_differ_and_contrast_with_light_and_dark_pages(count):
    found = charts.colors(count)
    assert len(set(found)) == count
    for color in found:
        assert re.fullmatch("#[0-9a-f]{6}", color)
        assert 1.05 / (luminance(color) + 0.05) > 2.8  # with #ffffff
        assert (luminance(color) + 0.05) / (luminance("#1b1f23") + 0.05) > 3


def bars_of(chart):
    """Returns the height of each bar."""
    paths = [bar.get("d") for bar in marks(chart)["rect"]]
    return [float(re.match(r"M[-\d.]+,[-\d.]+h[-\d.]+v([-\d.]+)h", path)[1]) for path in paths]


def test_bars_are_as_high_as_their_values():
    values = [30, 0, 60]
    bars = [charts.Bar(value, "", f"{value} images") for value in values]
    heights = bars_of(charts.bar_chart(bars, "pixels", "images"))
    assert heights[1] == 0
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.2)


def test_bars_of_the_same_name_stay_apart_and_keep_their_colours():
    bars = [charts.Bar(1, "a", "", "#aa0000"), charts.Bar(2, "a", "")]
    rectangles = marks(charts.bar_chart(bars, "class", "images"))["rect"]
    assert [bar.get("fill") for bar in rectangles] == ["#aa0000", "var(--curve)"]


def test_a_small_value_can_be_told_from_zero():
    bars = [charts.Bar(value, "a", "") for value in (1, 0, 10**6)]
    rectangles = marks(charts.bar_chart(bars, "class", "images"))["rect"]
    assert [bar.get("stroke-width") for bar in rectangles] == ["1", "0", "1"]
