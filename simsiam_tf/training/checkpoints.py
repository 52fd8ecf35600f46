"""The folder of a run: its flags, and checkpoints to go on from."""

import os
import re
import shutil
import tempfile

import tensorflow as tf
from absl import logging

from simsiam_tf import config as config_lib
from simsiam_tf.config import UserError

FLAGFILE = "flags.cfg"
_KEEP = 3
_STEP_FOLDER = re.compile(r"step-(\d+)")


def check_workdir(config):
    """Refuses a workdir that cannot be written to, or that holds a run of another configuration.

    What its flags do not name, as after an import, may be anything.
    """
    workdir = config.system.workdir
    try:
        os.makedirs(workdir, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir must be a folder that can be written to ({error.strerror}). "
            f"Received: {workdir}"
        ) from error
    path = os.path.join(workdir, FLAGFILE)
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        there = dict(line.rstrip("\n").removeprefix("--").split("=", 1) for line in file)
    settings = config_lib.flatten(config)
    here = {name: config_lib.format_value(value) for name, value in settings.items()}
    differing = [
        f"--{name}={there[name]} there, {here[name]} here"
        for name in sorted(config_lib.run_defining_names(type(config)))
        if there.get(name, here[name]) != here[name]
    ]
    if differing:
        raise UserError(
            f"--workdir={workdir} holds a run of another configuration: {'; '.join(differing)}. "
            "Take another --workdir, or its flags"
        )


def write_flags(config):
    """Writes the resolved flags into the workdir, as a flagfile that repeats the run."""
    text = config_lib.to_flagfile(config_lib.flatten(config))
    write_whole(os.path.join(config.system.workdir, FLAGFILE), text)


def write_whole(path, text):
    """Writes a file aside and renames it: what has the name is whole."""
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.partial", path)


class Checkpoints:
    """Checkpoints of a model and its optimizer, one folder a step, the newest few kept."""

    def __init__(self, workdir, model, optimizer):
        self.directory = os.path.join(workdir, "checkpoints")
        # By position: TensorFlow does not look into the lists of layers that Keras layers hold.
        self.checkpoint = tf.train.Checkpoint(
            model=[variable.value for variable in model.weights],
            optimizer=[variable.value for variable in optimizer.variables],
        )

    def save(self, step):
        """Writes a checkpoint aside and renames it: what has the name is whole."""
        folder = os.path.join(self.directory, f"step-{step:09d}")
        if os.path.isdir(folder):
            return
        staging = f"{folder}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        os.makedirs(staging)
        self.checkpoint.write(os.path.join(staging, "state"))
        os.replace(staging, folder)
        for old in self._steps()[:-_KEEP]:
            shutil.rmtree(os.path.join(self.directory, f"step-{old:09d}"))

    def restore(self):
        """Restores the newest checkpoint. Returns its step, or None where there is none."""
        steps = self._steps()
        if not steps:
            return None
        folder = os.path.join(self.directory, f"step-{steps[-1]:09d}")
        status = self.checkpoint.read(os.path.join(folder, "state"))
        status.assert_existing_objects_matched()
        logging.info("Restored %s", folder)
        return steps[-1]

    def _steps(self):
        if not os.path.isdir(self.directory):
            return []
        matches = (_STEP_FOLDER.fullmatch(name) for name in os.listdir(self.directory))
        return sorted(int(match[1]) for match in matches if match)
