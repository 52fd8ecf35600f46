"""Whether a damaged checkpoint is ever restored as if it were whole.

python benchmarks/corrupt.py --copies=2000

Each copy of a checkpoint has one file damaged: a random bit flipped, or its end cut off at a random
place; any of its files, the manifest included. In every other copy an older, whole checkpoint
stands beside it, to fall back to. Exit status 1 where one was restored with wrong weights, or where
restoring ended otherwise than it says it does. A few minutes on two cores.
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

# Narrow, so that a copy takes milliseconds; its files are those of any other run.
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
OUTCOMES = [FELL_BACK, REFUSED, HARMLESS, SILENT, FAILED]
DAMAGES = {"bit": "one bit flipped", "cut": "end cut off"}


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--copies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="a JSON file of the counts")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.FATAL)  # each damage is an error in the log

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
    """A workdir with checkpoints of known weights."""

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
        """What is in the model and the optimizer now, as bytes."""
        return [variable.numpy().tobytes() for variable in self.variables]

    def restore(self):
        """Restores what is there. Returns the outcome and, where it failed, the traceback."""
        for variable in self.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        try:
            step = self.checkpoints.restore()
        except schema.UserError:
            whole = len(self.saved) > 1
            return (FAILED, "Refused, although the older one is whole") if whole else (REFUSED, "")
        except Exception:
            return FAILED, traceback.format_exc()
        if self.tensors() != self.saved.get(step):
            return SILENT, f"As step {step}"
        return (HARMLESS if step == NEWER else FELL_BACK), ""


def damage_copies(runs, copies, rng):
    """Returns {(file, damage): {outcome: count}}, and in words what should not have been."""
    counts = collections.defaultdict(lambda: dict.fromkeys(OUTCOMES, 0))
    examples = []
    started = shown = time.perf_counter()
    for copy in range(copies):
        run = runs[copy % len(runs)]
        path = rng.choice(list(run.files))
        whole = run.files[path]
        damage = rng.choice(list(DAMAGES))
        place = rng.randrange(len(whole) * 8 if damage == "bit" else len(whole))
        path.write_bytes(damaged(whole, damage, place))
        outcome, why = run.restore()
        path.write_bytes(whole)
        counts[path.name, damage][outcome] += 1
        if outcome in (SILENT, FAILED):
            examples.append(f"{path.name}, {DAMAGES[damage]} at {place}: {outcome}. {why}")
        now = time.perf_counter()
        if now - shown > 5:
            left = (now - started) / (copy + 1) * (copies - copy - 1)
            print(f"{copy + 1}/{copies} copies, {left:.0f} s left", file=sys.stderr, flush=True)
            shown = now
    return counts, examples


def damaged(content, damage, place):
    """The content with the bit at a place flipped, or only what comes before the place."""
    if damage == "cut":
        return content[:place]
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def table(counts, totals):
    lines = [
        f"| file | damage | copies | {' | '.join(OUTCOMES)} |",
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
