"""The reliability programs run with small settings, and detect planted errors."""

import json
import shutil

import pytest
import tensorflow as tf

from benchmarks import corrupt, kill_resume

# Whole benchmarks: no user runs them, and each takes a minute.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def killed(new_program, tmp_path_factory):
    """Returns the finished program of one kill, its JSON result and the uninterrupted run."""
    folder = tmp_path_factory.mktemp("kills")
    output = folder / "kills.json"
    finished = new_program(
        "benchmarks/kill_resume.py", "--kills=1", "--epochs=1", f"--folder={folder / 'runs'}",
        f"--output={output}", timeout=600,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished, json.loads(output.read_text()), folder / "runs" / "reference"


def test_killed_runs_give_the_result_of_an_uninterrupted_run(killed):
    finished, result, _ = killed
    assert result["kills"] == sum(row["kills"] for row in result["moments"].values()) == 1
    assert result["differences"] == result["failures"] == []
    runs = result["compared"]["runs"]
    assert runs >= 1
    assert result["compared"]["tensors"] > 100 * runs
    # Each run has lines for health and kNN before and after the epoch, and for steps 5, 10, 15, 20
    # and 22.
    assert result["compared"]["lines"] == 9 * runs
    assert "\n| all | 1 | " in finished.stdout
    assert "\n| differences | 0 |\n| failures | 0 |\n" in finished.stdout


def change_a_bit(prefix):
    """Flips a bit in the largest tensor of a TensorFlow checkpoint, which stays valid."""
    reader = tf.train.load_checkpoint(str(prefix))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    tensors = {name: reader.get_tensor(name).copy() for name in names}
    largest = max(tensors.values(), key=lambda tensor: tensor.size)
    largest.reshape(-1).view("uint8")[0] ^= 1
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names),
        tensors=list(tensors.values()),
    )  # fmt: skip


def change_a_line(path, change):
    *lines, last = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in [*lines, *change(json.loads(last))]))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda run: change_a_bit(run / "checkpoints/step-000000022/state"), "checkpoint: "),
        (lambda run: change_a_bit(run / "encoder/variables/variables"), "encoder: "),
        (
            lambda run: change_a_line(
                run / "metrics.jsonl",
                lambda line: [json.dumps(line | {"knn_top1": line["knn_top1"] + 1e-13})],
            ),
            "metrics: ",
        ),
        (
            lambda run: change_a_line(run / "metrics.jsonl", lambda line: []),
            "metrics: None instead of ",
        ),
    ],
    ids=["checkpoint", "encoder", "value", "missing line"],
)
def test_a_difference_between_runs_is_reported(killed, tmp_path, change, where):
    _, _, reference = killed
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    assert kill_resume.differences(run, reference)[0] == []
    change(run)
    (difference,), _ = kill_resume.differences(run, reference)
    assert difference.startswith(where)


def test_values_that_depend_on_the_clock_are_no_difference(killed, tmp_path):
    _, _, reference = killed
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    text = (run / "metrics.jsonl").read_text()
    changed = text.replace('"images_per_second": ', '"images_per_second": 1')
    assert changed != text
    (run / "metrics.jsonl").write_text(changed)
    assert kill_resume.differences(run, reference)[0] == []


def test_no_damaged_copy_of_a_checkpoint_is_restored_with_wrong_weights(new_program, tmp_path):
    output = tmp_path / "corrupt.json"
    finished = new_program("benchmarks/corrupt.py", "--copies=40", f"--output={output}")
    assert finished.returncode == 0, finished.stderr + finished.stdout
    result = json.loads(output.read_text())
    assert result["copies"] == 40
    outcomes = result["outcomes"]
    assert (
        outcomes[corrupt.FELL_BACK] + outcomes[corrupt.HARMLESS] + outcomes[corrupt.REFUSED] == 40
    )
    assert outcomes[corrupt.FELL_BACK] >= 10
    assert outcomes[corrupt.REFUSED] >= 10
    assert {row["file"] for row in result["by_damage"]} == {
        "manifest.json", "state.data-00000-of-00001", "state.index",
    }  # fmt: skip
    assert "\n| all | | 40 | " in finished.stdout


def test_wrong_weights_with_a_matching_manifest_are_reported(tmp_path):
    run = corrupt.Run(tmp_path, [corrupt.OLDER, corrupt.NEWER])
    assert run.restore()[0] == corrupt.HARMLESS
    for path in run.files:
        older = path.parent.with_name(f"step-{corrupt.OLDER:09d}")
        path.write_bytes((older / path.name).read_bytes())
    assert run.restore()[0] == corrupt.SILENT
