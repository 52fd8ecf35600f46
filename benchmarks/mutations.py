"""Breaks lines of the project, one at a time, and reports whether the tests notice.

python benchmarks/mutations.py --output=mutations.json

Each mutation is made in a copy of the repository. The tests of its part of the project then run
until the first failure; a mutation that they do not notice survives, and is tried against the
tests of all parts. A survivor is a line that no test depends on. Mutations that the output already
has are not repeated. On two cores, the program takes about an hour.
"""

import argparse
import collections
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The tests of each part, those that are likeliest to notice first.
TESTS = {
    "methods": ["tests/test_objectives.py", "tests/methods"],
    "normalization": ["tests/models/test_normalization.py", "tests/models/test_resnet.py"],
    "optimizers": ["tests/optimization", "tests/methods"],
    "pipeline": [
        "tests/data/test_pipeline.py",
        "tests/data/test_views.py",
        "tests/data/test_ops.py",
        "tests/data/test_kernels.py",
    ],
    "evaluation": ["tests/evaluation"],
}
_SECONDS = 900  # after which a mutation counts as noticed, because the tests hang
_OPTIONS = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=-m 'not long'"]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A line, or a part of one, and what replaces it."""

    part: str  # a key of `TESTS`
    path: str  # below simsiam_tf
    old: str  # occurs once in the file
    new: str

    @property
    def name(self) -> str:
        """A line of text that tells the mutation."""
        return f"{self.path}: {self.old.strip()} → {self.new.strip()}"


def _of(part, path, *pairs):
    return [Mutation(part, path, old, new) for old, new in pairs]


MUTATIONS = [
    *_of(
        "methods",
        "objectives.py",
        ("return -tf.reduce_mean(tf.reduce_sum(p * z, axis=1))", "return -tf.reduce_sum(p * z)"),
        ("tf.nn.softmax(z) * tf.nn.log_softmax(p)", "tf.nn.softmax(p) * tf.nn.log_softmax(z)"),
        ("dtype=logits.dtype) * 1e9", "dtype=logits.dtype)"),
        ("[indices + num_candidates, indices], axis=0)", "[indices, indices], axis=0)"),
        ("log_codes = scores / epsilon", "log_codes = scores * epsilon"),
        ("return tf.exp(log_codes + math.log(num_rows))", "return tf.exp(log_codes)"),
        ("tf.reduce_mean(tf.sqrt(variance)) * tf.sqrt(dimension)", "tf.reduce_mean(variance)"),
    ),
    *_of(
        "methods",
        "methods/simsiam.py",
        (
            "tf.stop_gradient if config.stop_gradient else",
            "tf.identity if config.stop_gradient else",
        ),
        ('"symmetric": ((0, 1), (1, 0))', '"symmetric": ((0, 0), (1, 1))'),
        ("/ len(self.pairs)", "/ 1"),
    ),
    *_of(
        "methods",
        "methods/byol.py",
        ("loss += 2 + 2 * negative_cosine_similarity(p2, target1)", "loss *= 2"),
        ("self.optimizer.iterations - 1, skipped", "self.optimizer.iterations * 0, skipped"),
    ),
    *_of(
        "methods",
        "methods/mocov2.py",
        ("info_nce(q1, k2, negatives", "info_nce(q1, k1, negatives"),
        ("tf.concat(tf.unstack(keys, axis=1), axis=0)", "keys[:, 0]"),
    ),
    *_of(
        "methods",
        "methods/swav.py",
        ("swapped_prediction(codes2, predicted1", "swapped_prediction(codes1, predicted1"),
        ("self.prototypes.normalize(skipped)", "pass"),
        ("self.optimizer.iterations < self.num_frozen_steps", "self.optimizer.iterations < 0"),
    ),
    *_of(
        "methods",
        "methods/alternation.py",
        ("momentum * old + (1 - momentum) * unit", "old + (1 - momentum) * unit"),
        ("variable.assign(old)  # only", "pass  # only"),
        ("step % self.freeze_every", "step"),
    ),
    *_of(
        "methods",
        "methods/base.py",
        ("_select(skipped, before, after)", "after"),
        (
            "scaled_loss = loss * scale / (collectives.num_replicas() * count)",
            "scaled_loss = loss * scale / count",
        ),
        ("gradients = [gradient / scale for gradient in gradients]", "pass"),
    ),
    *_of(
        "methods",
        "models/momentum.py",
        ("share = tf.constant(1 - start", "share = tf.constant(start"),
        ("tf.square(tf.cos(math.pi / 2 * progress))", "tf.cos(math.pi / 2 * progress)"),
    ),
    *_of(
        "normalization",
        "models/normalization.py",
        ("unbiased = variance * count / (count - 1)", "unbiased = variance"),
        ("variances + tf.math.squared_difference(means, mean)", "variances"),
        ("running_mean += (1 - momentum)", "running_mean += momentum"),
        ("for view in range(mean.shape[0]):", "for view in range(1):"),
        ("dx = dy - _broadcast(dy_mean) - centered", "dx = dy - centered"),
        ("if self.frozen or not training:", "if not training:"),
        (
            "tf.where(_affine(x, mean, scale, beta) > 0, tf.cast(dy, mean.dtype), 0)",
            "tf.cast(dy, mean.dtype)",
        ),
        ("means = collectives.mean_over_replicas(local)", "means = local"),
        ("epsilon: float = 1e-5", "epsilon: float = 1e-3"),
    ),
    *_of(
        "optimizers",
        "optimization/optimizers.py",
        ("return gradient + self.l2_penalty * weight", "return gradient"),
        ("+ self.l2_penalty * weight_norm + 1e-8", "+ 1e-8"),
        ("lr=constant_rate if is_constant else learning_rate", "lr=learning_rate"),
        (
            "momentum = tf.where(finite, tf.constant(self.momentum, dtype), 1)",
            "momentum = tf.constant(self.momentum, dtype)",
        ),
        ("tf.cast(step, tf.int32) // self.steps_per_epoch", "tf.cast(step, tf.int32)"),
        ("if index not in self.excluded_variables:", "if True:"),
        (
            "is_scaled = tf.logical_and(weight_norm > 0, gradient_norm > 0)",
            "is_scaled = gradient_norm > 0",
        ),
    ),
    *_of(
        "optimizers",
        "optimization/schedules.py",
        ("initial * (epoch + 1) / warmup", "initial * epoch / warmup"),
        ("return base * batch_size / 256", "return base"),
        ("_half_cosine((step - warmup)", "_half_cosine((step)"),
    ),
    *_of(
        "pipeline",
        "data/order.py",
        (
            "return epoch_order(num_examples, seed, step // steps_per_epoch, offsets)",
            "return epoch_order(num_examples, seed, 0, offsets)",
        ),
        (
            "step_order(source.num_examples, batch_size, seed, step)[first:last]",
            "step_order(source.num_examples, batch_size, seed, step)[: last - first]",
        ),
        ("0, offsets, Purpose.SUBSET)", "0, offsets)"),
    ),
    *_of(
        "pipeline",
        "data/pipeline.py",
        ("fold_in([seed, Purpose.VIEWS], epoch, index)", "fold_in([seed, Purpose.VIEWS], epoch)"),
    ),
    *_of(
        "pipeline",
        "data/views.py",
        ('"order": tf.argsort(uniform["order"])', '"order": tf.argsort(uniform["order"] * 0)'),
        ('uniform["chance"] < tf.constant(probabilities)', 'uniform["chance"] <= 2'),
        ("count = tf.where(flips[number], -count % 4, count)", "pass"),
    ),
    *_of(
        "pipeline",
        "data/ops.py",
        (
            "ratio = tf.exp(between(aspects, math.log(aspect[0]), math.log(aspect[1])))",
            "ratio = between(aspects, aspect[0], aspect[1])",
        ),
        ('[height, width], "bilinear", antialias=True)', '[height, width], "bilinear")'),
    ),
    *_of(
        "pipeline",
        "data/kernels.py",
        (
            "radius = min(math.ceil(_BLUR_SIGMAS * sigma), size - 1)",
            "radius = min(math.ceil(sigma), size - 1)",
        ),
    ),
    *_of(
        "evaluation",
        "evaluation/knn.py",
        ("tf.exp(cosine / temperature)", "tf.exp(cosine)"),
        ("chosen = tf.sort(chosen)", "pass"),
    ),
    *_of(
        "evaluation",
        "evaluation/probe.py",
        ("best = int(np.argmin(cross_entropies))", "best = 0"),
        ("+ weight_decay * kernel", ""),
    ),
    *_of(
        "evaluation",
        "evaluation/linear.py",
        ("schedules.cosine(learning_rate, config.epochs)", "[learning_rate] * config.epochs"),
        ("stddev=0.01", "stddev=0.1"),
    ),
    *_of(
        "evaluation",
        "evaluation/spectrum.py",
        ("features[start : start + _BLOCK] - mean", "features[start : start + _BLOCK]"),
    ),
    *_of(
        "evaluation",
        "evaluation/finetune.py",
        ("max(1, round(fraction * len(of_class)))", "round(fraction * len(of_class))"),
    ),
]


def run_tests(root, tests):
    """Returns whether tests fail, and the first one that does."""
    command = [sys.executable, "-B", "-m", "pytest", *_OPTIONS, *tests]
    try:
        run = subprocess.run(
            command, cwd=root, timeout=_SECONDS, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return True, "the tests hang"
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return run.returncode != 0, failed[0] if failed else ""


def is_noticed(root, mutation, tests):
    """Returns what `run_tests` finds with a mutation; the file is as before afterwards."""
    path = root / "simsiam_tf" / mutation.path
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.path} must have once: {mutation.old}")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return run_tests(root, tests)
    finally:
        path.write_text(text, encoding="utf-8")


def table(results):
    """Returns the numbers of mutations and of noticed ones as Markdown, by part, and survivors."""
    counts = collections.Counter(result["part"] for result in results)
    noticed = collections.Counter(result["part"] for result in results if result["noticed"])
    lines = ["| part | mutations | noticed |", "|---|---|---|"]
    lines += [f"| {part} | {count} | {noticed[part]} |" for part, count in counts.items()]
    lines.append(f"| together | {counts.total()} | {noticed.total()} |")
    lines += [f"- survives: {result['name']}" for result in results if not result["noticed"]]
    return "\n".join(lines)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--part", choices=TESTS, help="only the mutations of a part")
    options = parser.parse_args(arguments)
    results = json.loads(options.output.read_text()) if options.output.exists() else []
    done = {result["name"] for result in results}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "copy"
        names = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        todo = [
            mutation
            for mutation in MUTATIONS
            if mutation.name not in done and options.part in (None, mutation.part)
        ]
        for part in dict.fromkeys(mutation.part for mutation in todo):
            fails, by = run_tests(root, TESTS[part])
            if fails:
                raise SystemExit(f"The tests of {part} fail without a mutation: {by}")
        for mutation in todo:
            started = time.monotonic()
            noticed, by = is_noticed(root, mutation, TESTS[mutation.part])
            if not noticed:
                others = [
                    path for part, paths in TESTS.items() for path in paths if part != mutation.part
                ]
                noticed, by = is_noticed(root, mutation, others)
            seconds = round(time.monotonic() - started)
            facts = {"noticed": noticed, "by": by, "seconds": seconds}
            results.append({"name": mutation.name, "part": mutation.part, **facts})
            print(json.dumps(results[-1], ensure_ascii=False), flush=True)
            options.output.write_text(json.dumps(results, indent=2), encoding="utf-8")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
