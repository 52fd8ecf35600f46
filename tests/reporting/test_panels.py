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
    runs = {"a": LINES, "b": LINES[:1]}
    found = panels.line_charts(panels.FIGURE_2, runs, ["#aa0000", "#0000aa"])
    assert [title for title, _ in found] == ["Loss", "kNN top-1"]
    html = panels.figures(found)
    assert html.count("<figcaption>") == 2
    assert html.count("<svg") == 2
    assert panels.line_charts(panels.FIGURE_2, {"a": []}) == []
    assert panels.figures([]) == ""


def test_the_std_has_fixed_limits_and_two_levels_and_knn_the_random_networks():
    lines = [*LINES, {"step": 3, "epoch": 1.5, "feature_std": 0.9, "knn_top1": 80.0}]
    charts = dict(panels.line_charts(panels.FIGURE_2, {"": lines}))
    std, knn = (str(charts[title]) for title in ("Std of z/‖z‖, times √d", "kNN top-1"))
    assert "collapsed below 0.3" in std
    assert "healthy: 1" in std
    assert charts["Std of z/‖z‖, times √d"]["encoding"]["y"]["scale"]["domain"] == [0, 1.1]
    assert "random network: 60.0" in knn
    several = dict(panels.line_charts(panels.FIGURE_2, {"a": lines, "b": lines}))
    assert "random network" not in str(several["kNN top-1"])
