"""Tests whether a damaged checkpoint is ever restored as if it were intact.

python benchmarks/corrupt.py --copies=2000

In each copy of a checkpoint, one file is damaged: a random bit is flipped, or the file is cut off
at a random offset. The file may be any of the checkpoint's, including the manifest. Every other
copy has an older, intact checkpoint to fall back to. The exit status is 1 if a copy was restored
with wrong weights, or if restoring failed in an undocumented way. The program takes a few minutes
on two cores.
"""

import argparse
import collections
import json
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import simsiam_tf  # noqa: F401 (chooses the backend before Keras loads)

import numpy as np  # isort: skip
import tensorflow as tf
from absl import logging

from simsiam_tf import config as config_lib
from simsiam_tf import schema
from simsiam_tf.methods.build import build_model
from simsiam_tf.runs.checkpoints import Checkpoints

# A narrow network, so that a copy takes milliseconds; it has the same files as any other run.
SETTINGS = {
    "backbone": "resnet18",
    "width": 4,
    "stem": "cifar",
    "projection_dim": 16,
    "projection_hidden_dim": 16,
    "prediction_hidden_dim": 8,
}
OLDER, NEWER = 1, 2

FELL_BACK = "found, older one restored"
REFUSED = "found, refused"
HARMLESS = "restored, nothing wrong"
SILENT = "restored with wrong weights"
FAILED = "failed otherwise"
# The outcomes, which are keys of the JSON result, and their headings in the printed table.
HEADINGS = {
    FELL_BACK: "detected, older checkpoint restored",
    REFUSED: "detected, none older: refused",
    HARMLESS: "restored with correct weights",
    SILENT: "restored with wrong weights",
    FAILED: "failed in another way",
}
OUTCOMES = list(HEADINGS)
DAMAGES = {"bit": "one bit flipped", "cut": "end cut off"}


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--copies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file for the counts")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.FATAL)  # otherwise every damage logs an error

    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(Path(folder) / "one", [NEWER]), Run(Path(folder) / "two", [OLDER, NEWER])]
        counts, examples = damage_copies(runs, options.copies, random.Random(options.seed))

    totals = {outcome: sum(row[outcome] for row in counts.values()) for outcome in OUTCOMES}
    print(table(counts, totals))
    for example in examples:
        print(f"\n{example}")
    result = {
        "copies": sum(totals.values()),
        "outcomes": totals,
        "by_damage": [
            {"file": file, "damage": damage, **counts[file, damage]}
            for file, damage in sorted(counts)
        ],
        "examples": examples,
    }
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2), encoding="utf-8")
    return 1 if totals[SILENT] or totals[FAILED] else 0


class Run:
    """A run's folder with checkpoints of known weights."""

    def __init__(self, workdir, steps):
        self.workdir = workdir
        settings = schema.defaults(config_lib.PretrainConfig) | SETTINGS
        config = schema.build(config_lib.PretrainConfig, settings)
        model, optimizer = build_model(config, tf.distribute.get_strategy())
        self.variables = [*model.weights, *optimizer.variables]
        self.checkpoints = Checkpoints(str(workdir), model, optimizer)
        self.saved = {}
        for step in steps:
            rng = np.random.default_rng(step)
            for variable in self.variables:
                variable.assign(rng.uniform(1, 1000, variable.shape).astype(variable.dtype))
            self.saved[step] = self.tensors()
            self.checkpoints.save(step)
        newest = workdir / "checkpoints" / f"step-{max(steps):09d}"
        self.files = {path: path.read_bytes() for path in sorted(newest.iterdir())}

    def tensors(self):
        """Returns the current variables of the model and the optimizer as bytes."""
        return [variable.numpy().tobytes() for variable in self.variables]

    def restore(self):
        """Restores a checkpoint. Returns the outcome and, for a failure, its explanation."""
        for variable in self.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        try:
            step = self.checkpoints.restore()
        except schema.UserError:
            whole = len(self.saved) > 1
            return (
                (FAILED, "Refused, although the older checkpoint is intact")
                if whole
                else (REFUSED, "")
            )
        except Exception:
            return FAILED, traceback.format_exc()
        if self.tensors() != self.saved.get(step):
            return SILENT, f"The checkpoint restored was step {step}"
        return (HARMLESS if step == NEWER else FELL_BACK), ""


def damage_copies(runs, copies, rng):
    """Returns {(file, damage): {outcome: count}}, and descriptions of the broken promises."""
    counts = collections.defaultdict(lambda: dict.fromkeys(OUTCOMES, 0))
    examples = []
    started = shown = time.perf_counter()
    for copy in range(copies):
        run = runs[copy % len(runs)]
        path = rng.choice(list(run.files))
        whole = run.files[path]
        damage = rng.choice(list(DAMAGES))
        offset = rng.randrange(len(whole) * 8 if damage == "bit" else len(whole))
        path.write_bytes(damaged(whole, damage, offset))
        outcome, why = run.restore()
        path.write_bytes(whole)
        counts[path.name, damage][outcome] += 1
        if outcome in (SILENT, FAILED):
            examples.append(
                f"{path.name}, {DAMAGES[damage]} at {offset}: {HEADINGS[outcome]}. {why}"
            )
        now = time.perf_counter()
        if now - shown > 5:
            left = (now - started) / (copy + 1) * (copies - copy - 1)
            print(f"{copy + 1}/{copies} copies, {left:.0f} s left", file=sys.stderr, flush=True)
            shown = now
    return counts, examples


def damaged(content, damage, offset):
    """Returns the bytes before an offset, or the content with one bit flipped at a bit offset."""
    if damage == "cut":
        return content[:offset]
    changed = bytearray(content)
    changed[offset // 8] ^= 1 << offset % 8
    return bytes(changed)


def table(counts, totals):
    lines = [
        f"| file | damage | copies | {' | '.join(HEADINGS.values())} |",
        f"|---|---|{'---|' * (len(OUTCOMES) + 1)}",
    ]
    for (file, damage), row in sorted(counts.items()):
        numbers = [sum(row.values()), *row.values()]
        lines.append(f"| {file} | {DAMAGES[damage]} | {' | '.join(map(str, numbers))} |")
    numbers = [sum(totals.values()), *totals.values()]
    lines.append(f"| all | | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
