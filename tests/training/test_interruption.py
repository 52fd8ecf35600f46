"""What ends a run before its time: signals, losses that are not finite, a full disk."""

import re
import shutil
import signal
import threading

import numpy as np
import pytest
from conftest import MONITORS, TINY_RUN
from programs import Program
from run_results import (
    assert_ends_with_one_line,
    assert_same_run,
    lines_of,
    wait_for_checkpoint,
    weights_of,
)

from simsiam_tf.schema import UserError
from simsiam_tf.training import interruption


def stop(number, flags, workdir, tfds_dir):
    """Starts a run, signals it after its first checkpoint, gives its status and last words."""
    process = Program("train.py", *flags, f"--workdir={workdir}", TFDS_DATA_DIR=str(tfds_dir))
    wait_for_checkpoint(process, workdir)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def test_sigterm_saves_the_step_at_hand_and_the_run_ends_as_if_it_had_not_come(
    tiny_run, train_here, tmp_path, tfds_dir, caplog
):
    workdir = tmp_path / "run"
    flags = [*TINY_RUN, *MONITORS, "--checkpoint_every_steps=13"]
    status, stderr = stop(signal.SIGTERM, flags, workdir, tfds_dir)
    assert status == 128 + signal.SIGTERM
    assert "Traceback" not in stderr
    (step,) = re.findall(r"train.py: SIGTERM: saved step (\d+) of 44 in .*resume", stderr)
    assert (workdir / "checkpoints" / f"step-{int(step):09d}").exists()
    caplog.set_level("INFO", logger="absl")
    train_here(workdir, *flags)
    assert f"Restored {workdir}/checkpoints/step-{int(step):09d}" in caplog.text
    assert_same_run(workdir, tiny_run)


def test_control_c_stops_a_run_of_two_replicas(tmp_path, tfds_dir):
    flags = [*TINY_RUN, "--checkpoint_every_steps=1", "--cpu_replicas=2"]
    status, stderr = stop(signal.SIGINT, flags, tmp_path / "run", tfds_dir)
    assert status == 128 + signal.SIGINT
    assert "SIGINT: saved step" in stderr.splitlines()[-1]


def test_a_run_whose_loss_is_not_finite_stops_with_good_checkpoints(train_here, tmp_path):
    with pytest.raises(UserError, match=r"of 4 steps in a row was not finite.* --max_nonfinite"):
        train_here(
            tmp_path, *TINY_RUN, "--base_learning_rate=1e30", "--checkpoint_every_steps=2",
            "--knn_every_epochs=0", "--max_nonfinite_steps=4",
        )  # fmt: skip
    skipped = [line for line in lines_of(tmp_path) if line.get("nonfinite")]
    assert [line["step"] - skipped[0]["step"] for line in skipped] == [0, 1, 2, 3]
    assert all(len(line["indices"]) == 64 for line in skipped)
    assert all(np.isfinite(value).all() for value in weights_of(tmp_path).values())


def test_a_disk_without_room_ends_with_one_line_and_the_checkpoints_intact(
    new_program, tiny_run, tmp_path
):
    # TensorBoard's file and the checkpoint of 1.6 MB may not grow over 1 MB, as on a full disk.
    code = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"
    )
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    (workdir / "summary.json").unlink()
    (whole,) = (workdir / "checkpoints").iterdir()
    earlier = whole.rename(whole.with_name("step-000000030"))
    finished = new_program("-c", code, *TINY_RUN, f"--workdir={workdir}")
    assert_ends_with_one_line(finished, "--workdir cannot be written to (", "resume", workdir)
    assert list((workdir / "checkpoints").iterdir()) == [earlier]


def test_a_run_in_another_thread_leaves_signals_to_the_main_thread():
    found = []

    def run():
        with interruption.noted() as received:
            found.append(received())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [None]
    assert signal.getsignal(signal.SIGTERM) is before
