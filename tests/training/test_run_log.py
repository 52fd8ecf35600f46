import contextlib

import pytest
from absl import logging

from simsiam_tf.methods.base import Plan
from simsiam_tf.schema import UserError
from simsiam_tf.training.run_log import RunLog, log_file

PLAN = Plan(num_examples=32, num_classes=0, batch_size=8, epochs=3)


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "epoch": 1}\n{"st\x00p": 4}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl must hold .* mend or remove line 2"):
        RunLog(str(tmp_path), PLAN, restored_step=4)


def test_a_full_disk_is_a_user_error_and_hides_no_other(tmp_path):
    log = RunLog(str(tmp_path), PLAN, restored_step=None)
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match=r"--workdir cannot be written to \(No space left"):
        log.write_line(1, {"loss": 1.0})
    log._file = open("/dev/full", "w")  # noqa: SIM115
    log._file.write("more")  # it fails once it is closed
    with pytest.raises(KeyError), log:
        raise KeyError


def test_the_log_file_has_the_log_and_the_line_that_a_run_ended_with(tmp_path):
    path = tmp_path / "logs" / "worker-0.log"
    for number in (1, 2):
        with contextlib.suppress(UserError), log_file(str(path)):
            logging.warning("start %d", number)
            raise UserError(f"end {number}")
    logging.warning("afterwards")
    lines = [line.split("] ")[1] for line in path.read_text().splitlines()]
    assert lines == ["start 1", "end 1", "start 2", "end 2"]
