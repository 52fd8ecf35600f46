"""Records: the verdict on a run, its warnings, and files that cannot be read."""

import json

import pytest

from simsiam_tf.reporting import record
from simsiam_tf.schema import UserError


@pytest.fixture
def run(tmp_path):
    """A function that writes metrics and other files into a run's folder and reads its record."""

    def build(lines, files=()):
        (tmp_path / "flags.cfg").write_text("--epochs=4\n--width=16\n")
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
        for name, content in dict(files).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        return record.read(str(tmp_path))

    return build


def std(epoch, value, **more):
    return {"step": 10 * epoch, "epoch": epoch, "feature_std": value, **more}


def knn(epoch, value):
    return {"step": 10 * epoch, "epoch": epoch, "knn_top1": value}


@pytest.mark.parametrize(
    ("lines", "word", "text"),
    [
        ([], "unknown", "No step"),
        ([knn(0, 50.0)], "unknown", "No step"),
        ([std(0.5, 0.98)], "healthy", "0.98"),
        ([knn(0, 66.1), std(1, 0.9), knn(1, 95.3)], "healthy", "from 66.1 % to 95.3 %"),
        ([knn(0, 66.1), std(1, 0.9), knn(1, 60.2)], "doubtful", "60.2 % is below"),
        ([std(1, 0.9), std(1.5, 0.2), std(2, 0.29), std(2.5, 0.1)], "collapsed", "0.29"),
        ([std(1, 0.9), std(1.5, 0.31), std(2, 0.1)], "doubtful", "0.31"),
        ([std(1, 0.9), {"step": 11, "epoch": 1.1, "nonfinite": True}], "doubtful", "not finite"),
        ([std(1, 0.9), std(2, float("nan"))], "healthy", "0.90"),
        # Collapsed features may still have a better kNN than the random network.
        ([knn(0, 66.1), std(1, 0.18), knn(1, 78.1)], "collapsed", "0.18"),
    ],
)
def test_the_verdict_covers_the_last_epoch(run, lines, word, text):
    found, sentence = run(lines).verdict
    assert found == word
    assert text in sentence


def test_warnings_of_all_workers_and_starts_are_counted(run):
    log = (
        "I1122 09:09:14.984443 139678286556032 datasets.py:227] digits: 1437 images\n"
        "W1122 09:09:15.984443 139678286556032 monitors.py:1] Collapse: [0.2]\n"
        "Traceback\n"
        "E1122 09:09:16.984443 1 monitors.py:1] Disk full\n"
    )
    found = run([], {"logs/worker-0.log": log, "logs/worker-1.log": log.replace("E1", "I1")})
    assert found.warnings == {"Collapse: [0.2]": 2, "Disk full": 1}


def test_a_truncated_last_line_is_ignored_and_a_damaged_line_is_a_warning(run, tmp_path):
    run([std(1, 0.9)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"st\x00\n[3]\n{"step": 20, "epoch": 2, "feature_std": 0.8}\n{"step": 3')
    found = record.read(str(tmp_path))
    assert found.points("feature_std") == [(1, 0.9), (2, 0.8)]
    first, second = found.warnings
    assert first.startswith("metrics.jsonl, line 2, cannot be read")
    assert second.startswith("metrics.jsonl, line 3, cannot be read")


def test_results_are_found_by_the_start_of_their_name(run):
    found = run([], {"results.json": '{"top1": 9.5}', "results-2.json": "?", "other.json": "{}"})
    assert found.results == {"results.json": {"top1": 9.5}}
    (warning,) = found.warnings
    assert warning.startswith("results-2.json cannot be read")


@pytest.mark.parametrize("text", [None, "--epochs=many\n", "nonsense\n"])
def test_a_folder_without_a_valid_flagfile_is_refused(tmp_path, text):
    if text:
        (tmp_path / "flags.cfg").write_text(text)
    with pytest.raises(UserError, match=r"--run must be .* of a run.*Received: /"):
        record.read(str(tmp_path))
