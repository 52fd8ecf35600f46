"""Checkpoints of a run: complete, verified when they are restored, one folder a step."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import files
from simsiam_tf.models.backbone import random_states
from simsiam_tf.models.bank import Bank
from simsiam_tf.runs.run_folder import CHECKPOINTS
from simsiam_tf.schema import UserError

MANIFEST = "manifest.json"  # of a checkpoint: the SHA-256 of its other files
_BANK = "targets.npy"
_STEP_FOLDER = re.compile(r"step-(\d+)")


def locate(checkpoint: str) -> tuple[str, int | None]:
    """Returns the workdir and step of a checkpoint's folder; for another folder itself and None."""
    folder = os.path.abspath(checkpoint)
    parent, name = os.path.split(folder)
    step = _STEP_FOLDER.fullmatch(name)
    if step and os.path.basename(parent) == CHECKPOINTS:
        return os.path.dirname(parent), int(step[1])
    return folder, None


class Checkpoints:
    """Checkpoints of a model and its optimizer, one folder a step.

    A checkpoint is written to a temporary folder with the SHA-256 of every file, forced to the disk
    and then renamed. So a folder with a step's name was complete, and `restore` detects any change
    to it since.
    """

    def __init__(
        self,
        workdir: str,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
        bank: Bank | None = None,
        keep: int = 3,
        keep_every: int = 0,
        writes: bool = True,
    ) -> None:
        """Args:
        workdir: folder of the run.
        model: to save or restore. To restore it may be the part of the saved model whose weights
          come first, such as its encoder.
        optimizer: built; None: its state is neither saved nor restored.
        bank: the model's `Bank`, or None.
        keep: number of newest checkpoints to keep.
        keep_every: keep checkpoints at multiples of this step as well; 0: none.
        writes: whether this worker writes the files. Every worker must call `save`.
        """
        self.workdir = workdir
        self.bank = bank
        self.keep = keep
        self.keep_every = keep_every
        self.writes = writes
        self.directory = os.path.join(workdir, CHECKPOINTS)
        # By index: TensorFlow does not look into the lists of layers that Keras layers hold.
        self.checkpoint = tf.train.Checkpoint(
            model=[variable.value for variable in model.weights],
            optimizer=[variable.value for variable in optimizer.variables] if optimizer else [],
            random_states=[variable.value for variable in random_states(model)],
        )

    def save(self, step: int, *, repeatable: int | None = None) -> None:
        """Writes the checkpoint of a step, unless a complete one exists.

        Args:
          step: number of steps done.
          repeatable: a step; the newest checkpoint before it is kept as well, so that
            `--replay_step` can repeat it. None: none.

        Raises:
          UserError: the disk is full or cannot be written to.
        """
        parts = self.bank.parts() if self.bank else iter(())
        folder = self._folder(step)
        if not self.writes or (os.path.isdir(folder) and _damage(folder) is None):
            for _ in parts:  # collectives, in which every worker takes part
                pass
            return
        with files.writing_to(self.workdir):
            os.makedirs(self.directory, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)  # damaged; the disk may need its room
            self._discard_unfinished()
            with files.written_whole(folder) as staging:
                self._write(staging, parts)
            _force_to_disk(self.directory)
            for other in self._outdated(step, repeatable):
                shutil.rmtree(self._folder(other))

    def _write(self, folder: str, parts: Iterable[np.ndarray]) -> None:
        os.mkdir(folder)
        self.checkpoint.write(os.path.join(folder, "state"))
        if self.bank:
            _write_bank(os.path.join(folder, _BANK), self.bank, parts)
        hashes = {name: _sha256(os.path.join(folder, name)) for name in os.listdir(folder)}
        with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
            json.dump(hashes, file, indent=2, sort_keys=True)
        for name in [*hashes, MANIFEST, ""]:
            _force_to_disk(os.path.join(folder, name))

    def _discard_unfinished(self) -> None:
        for name in os.listdir(self.directory):
            if name.endswith(files.UNFINISHED):
                files.remove(os.path.join(self.directory, name))

    def _outdated(self, step: int, repeatable: int | None) -> list[int]:
        """The steps whose checkpoints are no longer needed once `step` is saved."""
        steps = self._steps()
        here = steps.index(step) + 1
        old = steps[: max(here - self.keep, 0)]
        if self.keep_every:
            old = [other for other in old if other % self.keep_every]
        if repeatable is not None:
            before = max((other for other in steps if other < repeatable), default=None)
            old = [other for other in old if other != before]
        # Newer checkpoints are damaged, or the run would have resumed from them.
        return old + steps[here:]

    def restore(self, *, before: int | None = None) -> int | None:
        """Restores the newest complete checkpoint and returns its step; None without checkpoints.

        Args:
          before: only checkpoints before this step count; None: all.

        Raises:
          UserError: every checkpoint is damaged.
        """
        steps = [step for step in self._steps() if before is None or step < before]
        for step in reversed(steps):
            damage = _damage(self._folder(step))
            if damage:
                logging.error("%s is damaged: %s", self._folder(step), damage)
                continue
            self._read(step)
            return step
        if steps:
            raise UserError(
                "--workdir must hold a complete checkpoint, or none to start anew. Received: "
                f"{self.directory}, all {len(steps)} damaged"
            )
        return None

    def restore_step(self, step: int) -> None:
        """Restores the checkpoint of exactly this step.

        Raises:
          UserError: it is missing or damaged.
        """
        damage = _damage(self._folder(step))
        if damage:
            raise UserError(
                f"--checkpoint must be complete ({damage}). Received: {self._folder(step)}"
            )
        self._read(step)

    def _read(self, step: int) -> None:
        folder = self._folder(step)
        status = self.checkpoint.read(os.path.join(folder, "state"))
        # An encoder alone restores only its own weights.
        status.assert_existing_objects_matched().expect_partial()
        if self.bank:
            self.bank.restore(np.load(os.path.join(folder, _BANK), mmap_mode="r"))
        logging.info("Restored %s", folder)

    def _folder(self, step: int) -> str:
        return os.path.join(self.directory, f"step-{step:09d}")

    def _steps(self) -> list[int]:
        if not os.path.isdir(self.directory):
            return []
        matches = (_STEP_FOLDER.fullmatch(name) for name in os.listdir(self.directory))
        return sorted(int(match[1]) for match in matches if match)


def _damage(folder: str) -> str | None:
    """Describes what is wrong with a checkpoint's folder; None if it is complete."""
    try:
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
            hashes = json.load(file)
        changed = [
            name
            for name, expected in hashes.items()
            if _sha256(os.path.join(folder, name)) != expected
        ]
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return f"{', '.join(changed)} changed since it was written" if changed else None


def _write_bank(path: str, bank: Bank, parts: Iterable[np.ndarray]) -> None:
    array = np.lib.format.open_memmap(path, "w+", bank.dtype, (bank.num_rows, *bank.shape))
    start = 0
    for part in parts:
        array[start : start + len(part)] = part
        start += len(part)
    array.flush()


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _force_to_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
