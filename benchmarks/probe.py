"""Compares the speed and the accuracy of the probe with the linear protocol.

    python benchmarks/probe.py --encoder=runs/digits/encoder
    python benchmarks/probe.py --encoder=runs/mine/encoder --dataset=folder --data_dir=my_images \\
        --linear_flags="--batch_size=64 --base_learning_rate=6.4"

Without --encoder, the program first trains a small encoder on the digits for a moment. Three
evaluations alternate in one process: the linear protocol, the probe with an empty feature cache,
and the probe with cached features. Each is measured from the flags of `evaluate.py` to its result.
TensorFlow is loaded and warm before the measurement. The program reports both wall time and
processor time, which other programs hardly affect.
"""

import argparse
import contextlib
import io
import json
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import TINY_RUN

import numpy as np  # isort: skip

from simsiam_tf import config as config_lib
from simsiam_tf import schema
from simsiam_tf.evaluation import run
from simsiam_tf.evaluation.config import EvaluationConfig
from simsiam_tf.training import pretrain

# The flags with which README.md evaluates the digits.
DIGITS_FLAGS = "--batch_size=64 --base_learning_rate=25.6 --crop_min_area=0.8 --flip_probability=0"


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--encoder", help="folder of an encoder; without it one is trained")
    parser.add_argument("--dataset", default="digits", help="as in evaluate.py")
    parser.add_argument("--data_dir", default="", help="as in evaluate.py")
    parser.add_argument("--linear_flags", default=DIGITS_FLAGS, help="flags of the linear protocol")
    parser.add_argument("--probe_flags", default="", help="flags of the probe")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way")
    parser.add_argument("--output", help="JSON file for the result")
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as folder:
        encoder = options.encoder or train_encoder(folder)
        common = f"--encoder={encoder} --dataset={options.dataset} --data_dir={options.data_dir}"
        common += f" --output={Path(folder) / 'result.json'}"  # not beside the run's own results
        cache = Path(folder) / "features"
        probe = f"{common} --protocol=probe --feature_cache={cache} {options.probe_flags}"
        linear = f"{common} --protocol=linear --feature_cache={cache} {options.linear_flags}"
        evaluate(f"{probe} --probe_epochs=1")
        ways = {"linear": (linear, True), "probe": (probe, True), "probe, cached": (probe, False)}
        results = {name: [] for name in ways}
        for seed in range(options.repeats):
            for name, (flags, is_first) in ways.items():
                if is_first:
                    shutil.rmtree(cache)
                results[name].append(evaluate(f"{flags} --seed={seed}"))

    rows = {
        name: {key: [result[key] for result in of_way] for key in ("top1", "seconds", "cpu")}
        for name, of_way in results.items()
    }
    print(
        f"{options.dataset}, {options.repeats} seeds each; median (least to most)\n\n"
        "| | top-1, % | seconds | processor seconds | speed-up over linear | by processor time |\n"
        "|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        ratios = [
            np.divide(rows["linear"][key], row[key]).round(1).tolist() for key in ("seconds", "cpu")
        ]
        cells = [spread(values) for values in (*row.values(), *ratios)]
        print(f"| {name} | {' | '.join(cells)} |")
    difference = np.subtract(rows["probe"]["top1"], rows["linear"]["top1"])
    print(
        f"\nThe top-1 accuracy of the probe is {spread(difference, '+.2f')} points above "
        "the linear protocol's."
    )
    if options.output:
        Path(options.output).write_text(
            json.dumps({"options": vars(options), "results": results}) + "\n", encoding="utf-8"
        )


def spread(values, form=".2f"):
    return f"{np.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def evaluate(flags):
    """Returns the result of `evaluate.py` with these flags, and its wall and processor time."""
    text = "\n".join(shlex.split(flags))
    config = schema.from_flagfile(EvaluationConfig, text)
    printed = io.StringIO()
    started, cpu_started = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(printed):
        run.run(config)
    times = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu_started,
    }
    # TFDS, too, prints where it prepares a data set.
    return json.loads(printed.getvalue().splitlines()[-1]) | times


def train_encoder(folder):
    """Trains a small encoder on the digits for two epochs; returns its folder."""
    workdir = Path(folder) / "run"
    text = "\n".join([*TINY_RUN, f"--workdir={workdir}"])
    pretrain.run(schema.from_flagfile(config_lib.PretrainConfig, text))
    return workdir / "encoder"


if __name__ == "__main__":
    main(sys.argv[1:])
