"""Panels: which metrics of a run become curves."""

import math

from simsiam_tf.reporting import panels

LINES = [
    {"step": 0, "epoch": 0, "knn_top1": 60.0},
    {"step": 1, "epoch": 0.5, "loss": -0.2},
    {"step": 2, "epoch": 1, "loss": math.nan},
    {"step": 3, "epoch": 1.5, "loss": -0.6},
]


def test_points_are_the_finite_values_of_a_metric():
    assert panels.points_of(LINES, "loss") == [(0.5, -0.2), (1.5, -0.6)]
    assert panels.points_of(LINES, "unknown") == []


def test_a_panel_without_points_is_left_out():
    html = panels.figures(panels.FIGURE_2, {"a<b": LINES, "b": LINES[:1]}, ["#aa0000", "#0000aa"])
    assert html.count("<figcaption>") == 2
    assert html.count('class="curve"') == 3
    assert "<title>a&lt;b</title>" in html
    assert panels.figures(panels.FIGURE_2, {"a": []}) == ""
