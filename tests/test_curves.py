"""The picture of runs' curves."""

import pytest


def line(epoch):
    return f'{{"step": {epoch}, "epoch": {epoch}, "loss": -0.5, "feature_std": 0.9}}\n'


def test_a_run_that_is_writing_its_last_line_is_drawn(program, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "curves.png"
    run.mkdir()
    (run / "metrics.jsonl").write_text(line(1) + line(2) + line(3)[:20])
    finished = program("-m", "simsiam_tf.curves", f"--runs={run}", f"--output={picture}")
    assert finished.returncode == 0, finished.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [None, line(1) + "{\n"])
def test_metrics_that_cannot_be_read_end_with_one_line(program, tmp_path, content):
    if content:
        (tmp_path / "metrics.jsonl").write_text(content)
    finished = program("-m", "simsiam_tf.curves", f"--runs={tmp_path}")
    assert finished.returncode == 1
    (message,) = finished.stderr.strip().splitlines()
    assert f"Received: {tmp_path}" in message
