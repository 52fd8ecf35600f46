"""`simsiam_tf.curves` draws runs, finished or not, and reports metrics that cannot be read."""

import pytest


def line(epoch):
    return f'{{"step": {epoch}, "epoch": {epoch}, "loss": -0.5, "feature_std": 0.9}}\n'


def test_a_run_whose_last_line_is_incomplete_is_drawn(new_program, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "curves.png"
    run.mkdir()
    (run / "metrics.jsonl").write_text(line(1) + line(2) + line(3)[:20])
    finished = new_program("-m", "simsiam_tf.curves", f"--runs={run}", f"--output={picture}")
    assert finished.returncode == 0, finished.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [None, line(1) + "{\n"])
def test_unreadable_metrics_end_the_program_with_one_line(new_program, tmp_path, content):
    if content:
        (tmp_path / "metrics.jsonl").write_text(content)
    finished = new_program("-m", "simsiam_tf.curves", f"--runs={tmp_path}")
    assert finished.returncode == 1
    (message,) = finished.stderr.strip().splitlines()
    assert str(tmp_path) in message
