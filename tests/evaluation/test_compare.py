import json

import pytest

from simsiam_tf.evaluation import compare


@pytest.fixture
def compared(new_program, tmp_path):
    """({file name: content}) → the finished program."""

    def run(files):
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text)
        return new_program(
            "-m", "simsiam_tf.evaluation.compare", *(tmp_path / name for name in files)
        )

    return run


def result(**values):
    common = {
        "protocol": "knn",
        "dataset": "digits",
        "encoder": "x",
        "encoder_sha256": "0123456789",
    }
    return common | {"settings": {"seed": 3}} | values


def cells_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_each_result_is_a_row_of_the_table(compared, tmp_path):
    finished = compared(
        {
            "a.json": result(top1=95.277, top5=100.0, num_train=1437),
            "b.json": result(
                protocol="finetune", top1=90.0, settings={"seed": 0, "label_fraction": 0.01}
            ),
            "c.json": result(protocol="spectrum", effective_rank=36.214, singular_values=[1.0]),
        }
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    names, rule, *rows = cells_of(finished.stdout)
    assert names == [
        "file", "protocol", "dataset", "label_fraction", "num_train", "top1", "top5",
        "effective_rank", "seed", "encoder_sha256",
    ]  # fmt: skip
    assert set("".join(rule)) == {"-", ":"}
    assert rows == [
        [f"{tmp_path}/a.json", "knn", "digits", "", "1437", "95.28", "100.00", "", "3", "01234567"],
        [f"{tmp_path}/b.json", "finetune", "digits", "0.01", "", "90.00", "", "", "0", "01234567"],
        [f"{tmp_path}/c.json", "spectrum", "digits", "", "", "", "", "36.21", "3", "01234567"],
    ]
    assert len({len(line) for line in finished.stdout.splitlines()}) == 1


def test_files_without_a_result_are_named_after_the_table_of_the_others(compared, tmp_path):
    finished = compared(
        {"good.json": result(top1=1.0), "other.json": {"loss": 1}, "list.json": [1], "text": "{"}
    )
    assert finished.returncode == 1
    assert len(finished.stdout.splitlines()) == 3
    (line,) = finished.stderr.splitlines()
    assert line.startswith("compare.py: Only results of evaluate.py can be compared. Received: ")
    for name in ("other.json (not a result", "list.json (not a result", "text ("):
        assert f"{tmp_path}/{name}" in line
    assert "good.json" not in line


def test_a_missing_file_and_an_empty_command_line_end_with_one_line(new_program):
    finished = new_program("-m", "simsiam_tf.evaluation.compare", "/nowhere/results.json")
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert "/nowhere/results.json (No such file" in finished.stderr
    finished = new_program("-m", "simsiam_tf.evaluation.compare")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1
    assert "Name results to compare" in finished.stderr


def test_a_bar_in_a_name_does_not_break_the_table():
    assert "a\\|b" in compare.table([{"file": "a|b", "top1": 1.0}])
