"""The folder of a run: its flags, and checkpoints to go on from."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.schema import UserError

FLAGFILE = "flags.cfg"
_MANIFEST = "manifest.json"
_BANK = "targets.npy"
_UNFINISHED = ".partial"
_FOLDER = "checkpoints"
_STEP_FOLDER = re.compile(r"step-(\d+)")


@contextlib.contextmanager
def writing_to(workdir):
    """A context in which a disk that is full, read-only or gone is a `UserError`."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or " ".join(error.message.split())
        raise UserError(
            f"--workdir cannot be written to ({reason}). The newest checkpoint there is whole: "
            f"with room and permission to write, the same command goes on. Received: {workdir}"
        ) from error


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
        there = schema.read_flagfile(file.read())
    settings = schema.flatten(config)
    here = {name: schema.format_value(value) for name, value in settings.items()}
    differing = [
        f"--{name}={there[name]} there, {here[name]} here"
        for name in sorted(schema.run_defining_names(type(config)))
        if there.get(name, here[name]) != here[name]
    ]
    if differing:
        raise UserError(
            f"--workdir={workdir} holds a run of another configuration: {'; '.join(differing)}. "
            "Take another --workdir, or its flags"
        )


def read_config(workdir, flag):
    """The `PretrainConfig` of the run in a folder, which the user named by a flag."""
    path = os.path.join(workdir, FLAGFILE)
    try:
        with open(path, encoding="utf-8") as file:
            return schema.from_flagfile(PretrainConfig, file.read())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--{flag} must be the folder of a run, with its {FLAGFILE}. Received: {workdir}"
        ) from error


def locate(checkpoint):
    """The workdir of a checkpoint's folder, and its step; of another folder itself, and None."""
    folder = os.path.abspath(checkpoint)
    parent, name = os.path.split(folder)
    step = _STEP_FOLDER.fullmatch(name)
    if step and os.path.basename(parent) == _FOLDER:
        return os.path.dirname(parent), int(step[1])
    return folder, None


def write_flags(config):
    """Writes the resolved flags into the workdir, as a flagfile that repeats the run."""
    text = schema.to_flagfile(schema.flatten(config))
    write_whole(os.path.join(config.system.workdir, FLAGFILE), text)


def write_whole(path, text):
    """Writes a file aside and renames it: what has the name is whole."""
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.partial", path)


class Checkpoints:
    """Checkpoints of a model and its optimizer, one folder a step.

    Each is a transaction: written aside with the SHA-256 of every file, forced to the disk, then
    renamed. What has a step's name was whole, and restoring finds whatever changed it since.
    """

    def __init__(
        self, workdir, model, optimizer=None, *, bank=None, keep=3, keep_every=0, writes=True
    ):
        """Args:
        workdir: the run's folder.
        model: a Keras model; to restore, that part of it will do whose weights are its first.
        optimizer: a Keras optimizer, built; None: its state is not asked for.
        bank: a `Bank` of the model, or None.
        keep: how many of the newest are kept.
        keep_every: those of multiples of this step are kept besides; 0: none.
        writes: whether this worker is the one that writes; every worker has to save.
        """
        self.bank = bank
        self.keep = keep
        self.keep_every = keep_every
        self.writes = writes
        self.directory = os.path.join(workdir, _FOLDER)
        # By position: TensorFlow does not look into the lists of layers that Keras layers hold.
        self.checkpoint = tf.train.Checkpoint(
            model=[variable.value for variable in model.weights],
            optimizer=[variable.value for variable in optimizer.variables] if optimizer else [],
        )

    def save(self, step):
        """Writes the checkpoint of a step, unless there is a whole one."""
        parts = self.bank.parts() if self.bank else iter(())
        folder = self._folder(step)
        if not self.writes or (os.path.isdir(folder) and _damage(folder) is None):
            for _ in parts:  # which takes every worker
                pass
            return
        shutil.rmtree(folder, ignore_errors=True)
        self._discard_unfinished()
        staging = f"{folder}{_UNFINISHED}"
        os.makedirs(staging)
        try:
            self.checkpoint.write(os.path.join(staging, "state"))
            if self.bank:
                self._write_bank(os.path.join(staging, _BANK), parts)
            hashes = {name: _sha256(os.path.join(staging, name)) for name in os.listdir(staging)}
            with open(os.path.join(staging, _MANIFEST), "w", encoding="utf-8") as file:
                json.dump(hashes, file, indent=2, sort_keys=True)
            for name in [*hashes, _MANIFEST, ""]:
                _force_to_disk(os.path.join(staging, name))
        except (OSError, tf.errors.OpError):  # a full disk: leave the room to others
            self._discard_unfinished()
            raise
        os.replace(staging, folder)
        _force_to_disk(self.directory)
        for other in self._outdated(step):
            shutil.rmtree(self._folder(other))

    def _write_bank(self, path, parts):
        shape = (self.bank.num_rows, *self.bank.shape)
        array = np.lib.format.open_memmap(path, "w+", self.bank.dtype, shape)
        start = 0
        for part in parts:
            array[start : start + len(part)] = part
            start += len(part)
        array.flush()

    def _discard_unfinished(self):
        for name in os.listdir(self.directory) if os.path.isdir(self.directory) else ():
            if name.endswith(_UNFINISHED):
                shutil.rmtree(os.path.join(self.directory, name))

    def _outdated(self, step):
        """The steps of the checkpoints that need not be kept beside that of `step`."""
        steps = self._steps()
        here = steps.index(step) + 1
        old = steps[: max(here - self.keep, 0)]
        if self.keep_every:
            old = [other for other in old if other % self.keep_every]
        # What is newer than this step was damaged, or the run would have gone on from there.
        return old + steps[here:]

    def restore(self):
        """Restores the newest whole checkpoint. Returns its step, or None where there is none.

        Raises:
          UserError: there are checkpoints, and every one is damaged.
        """
        steps = self._steps()
        for step in reversed(steps):
            damage = _damage(self._folder(step))
            if damage:
                logging.error("%s is damaged: %s", self._folder(step), damage)
                continue
            self._read(step)
            return step
        if steps:
            raise UserError(
                "--workdir must hold a whole checkpoint, or none to begin anew. Received: "
                f"{self.directory}, all {len(steps)} damaged"
            )
        return None

    def restore_step(self, step):
        """Restores the checkpoint of a step and no other.

        Raises:
          UserError: it is missing or damaged.
        """
        damage = _damage(self._folder(step))
        if damage:
            raise UserError(
                f"--checkpoint must be whole ({damage}). Received: {self._folder(step)}"
            )
        self._read(step)

    def _read(self, step):
        folder = self._folder(step)
        status = self.checkpoint.read(os.path.join(folder, "state"))
        # An encoder alone asks for its part of what is there.
        status.assert_existing_objects_matched().expect_partial()
        if self.bank:
            self.bank.restore(np.load(os.path.join(folder, _BANK), mmap_mode="r"))
        logging.info("Restored %s", folder)

    def _folder(self, step):
        return os.path.join(self.directory, f"step-{step:09d}")

    def _steps(self):
        if not os.path.isdir(self.directory):
            return []
        matches = (_STEP_FOLDER.fullmatch(name) for name in os.listdir(self.directory))
        return sorted(int(match[1]) for match in matches if match)


def _damage(folder):
    """What is wrong with a checkpoint's folder, in words; None where it is whole."""
    try:
        with open(os.path.join(folder, _MANIFEST), encoding="utf-8") as file:
            hashes = json.load(file)
        changed = [
            name
            for name, expected in hashes.items()
            if _sha256(os.path.join(folder, name)) != expected
        ]
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return f"{', '.join(changed)} changed since it was written" if changed else None


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _force_to_disk(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
