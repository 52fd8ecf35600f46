"""Compiles the training step for an accelerator that this machine lacks, and runs nothing.

python benchmarks/ahead_of_time.py --target=h100 --flagfile=configs/r50.cfg --batch_size=256
python benchmarks/ahead_of_time.py --target=v5e --flagfile=configs/r50.cfg --augment_on=device
python benchmarks/ahead_of_time.py --target=graph --flagfile=configs/r50.cfg --replicas=2

XLA's own compiler for the chip compiles one replica's step, from uint8 views to the update. All
other flags are those of train.py; the program does not read the data set. `h100` and `v5e` need
benchmarks/requirements-ahead-of-time.txt. `graph` compiles nothing: it counts the operations that
the step launches outside XLA.
"""

import argparse
import importlib.util
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import chips

IMAGENET_EXAMPLES, IMAGENET_CLASSES = 1_281_167, 1000
_NUM_GROUPS = 30  # number of groups that --breakdown prints
# Headings of the printed table that differ from the keys of the JSON result.
_HEADINGS = {"pieces compiled by XLA": "functions compiled by XLA"}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong flag in one line, like the programs of the project."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def main(arguments):
    parser = _Parser(description=__doc__.split("\n\n", maxsplit=1)[0], allow_abbrev=False)
    parser.add_argument("--target", required=True, choices=[*chips.CHIPS, "graph"])
    parser.add_argument(
        "--replicas", type=int, default=1, help="number of replicas that share --batch_size"
    )
    parser.add_argument("--num_examples", type=int, default=IMAGENET_EXAMPLES,
                        help="size of the data set, which is not read")  # fmt: skip
    parser.add_argument("--breakdown", action="store_true", help="list the largest kernel groups")
    parser.add_argument("--output", help="JSON file to which the result is appended")
    parser.add_argument("--hlo", help="file for the compiled program")
    options, rest = parser.parse_known_args(arguments)

    if options.target != "graph" and not importlib.util.find_spec("jax_plugins"):
        parser.error(
            f"--target={options.target} needs the packages of "
            "benchmarks/requirements-ahead-of-time.txt"
        )

    chips.prepare_environment()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import simsiam_tf  # noqa: F401  (before TensorFlow)
    from simsiam_tf import flags, schema
    from simsiam_tf.config import PretrainConfig

    try:
        config = flags.read(rest, PretrainConfig)
        if config.optimization.batch_size % options.replicas:
            raise schema.UserError(
                f"--batch_size must be divisible by --replicas. Received: "
                f"{config.optimization.batch_size} and {options.replicas}"
            )
    except schema.UserError as error:
        parser.error(str(error))
    report = graph_report if options.target == "graph" else chip_report
    row, groups = report(config, options)
    print_table([row])
    if options.breakdown:
        print()
        print_table(groups[:_NUM_GROUPS])
    if options.output:
        result = row | {"flags": arguments, "groups": groups}
        with open(options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def chip_report(config, options):
    """Compiles the step for a chip; returns the table's row and the rows of kernel groups."""
    chip = chips.CHIPS[options.target]
    size = config.optimization.batch_size // options.replicas
    set_up(config)
    hlo, model_flops = lower_step(config, size, options.num_examples)
    program = chips.compile_for(chip, hlo)
    if options.hlo:
        with open(options.hlo, "w", encoding="utf-8") as file:
            file.write(program.text)

    row = {"step": describe(config, size), "chip": chip.name}
    row |= chip_row(program, chip, config, size, model_flops)
    groups = [
        {"kernels": count, "GB": moved / 1e9, "of": group}
        for group, count, moved in chips.largest_groups(program.kernels or [])
    ]
    return row, groups


def chip_row(program, chip, config, size, model_flops):
    """Returns the row of the table for a compiled program."""
    flops = program.flops or model_flops
    peak = chip.peaks[config.system.precision.removeprefix("mixed_")]
    kernels = program.kernels
    return {
        "compiles in, s": program.seconds,
        "arguments, GB": program.arguments / 1e9,
        "temporaries, GB": program.temporaries / 1e9,
        "total, GB": program.total / 1e9,
        "fits": program.total <= chip.memory,
        "kernels": kernels and len(kernels),
        "fusions": kernels and sum(kernel.opcode == "fusion" for kernel in kernels),
        "cuDNN, cuBLAS": kernels and sum(kernel.name.startswith("__cu") for kernel in kernels),
        "moved, GB": program.moved / 1e9,
        "TFLOP": flops / 1e12,
        "of the model, TFLOP": model_flops / 1e12,
        "images/s at most, by memory": size / (program.moved / chip.bandwidth),
        "by arithmetic": size / (flops / peak),
    }


def graph_report(config, options):
    """Traces the step outside XLA; returns the table's row and the rows of operation types."""
    import graph_operations
    import tensorflow as tf

    size = config.optimization.batch_size // options.replicas
    set_up(config)
    strategy = tf.distribute.get_strategy()
    if options.replicas > 1:
        strategy = graph_operations.replicas_on_processors(options.replicas)
    step, specs = build_step(config, strategy, size, options.num_examples)
    counts = graph_operations.count(strategy, step, specs)
    row = {"step": describe(config, size), "replicas": options.replicas}
    row |= {
        "launched operations": counts.launched,
        "pieces compiled by XLA": counts.compiled_pieces,
        "casts of activations": counts.casts,
        "other casts": counts.other_casts,
        "host waits": counts.host_waits,
        "collectives": counts.collectives,
        "broadcasts": counts.broadcasts,
    }
    groups = [{"operations": count, "of": group} for group, count in counts.by_type.most_common()]
    return row, groups


def set_up(config):
    """Sets the number format as a run does, and determinism for `--deterministic=true`."""
    import keras
    import tensorflow as tf

    if config.system.deterministic == "true":
        tf.config.experimental.enable_op_determinism()
    precision = config.system.precision
    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(precision)


def build_step(config, strategy, size, num_examples=IMAGENET_EXAMPLES):
    """Returns one replica's training step, as the loop runs it, and the specs of its batch.

    Args:
      config: a `PretrainConfig`.
      strategy: the strategy under which the model is built.
      size: the number of images in one replica's batch.
      num_examples: the size of the data set, which is not read.

    Returns:
      The step, batch → metrics, and a batch of `tf.TensorSpec`s.
    """
    import tensorflow as tf

    from simsiam_tf.data import views
    from simsiam_tf.methods.base import Plan
    from simsiam_tf.methods.build import build_model
    from simsiam_tf.training import loop, meter

    settings = config.optimization
    plan = Plan(num_examples, IMAGENET_CLASSES, settings.batch_size, settings.epochs)
    model, _ = build_model(config, strategy, plan)

    def step(batch):
        data = loop.prepared(batch, views.prepare, size)
        with tf.name_scope(meter.SCOPE):
            return model.train_step(data)

    make_views = views.build_views(config.views, model.num_views)
    image = tf.data.Dataset.from_tensors(tf.zeros([1, 1, 3], tf.uint8))
    example = image.map(lambda image: make_views(image, tf.zeros([2], tf.int32))).element_spec
    example |= {"label": tf.TensorSpec([], tf.int32), "index": tf.TensorSpec([], tf.int64)}
    specs = tf.nest.map_structure(
        lambda spec: tf.TensorSpec([size, *spec.shape], spec.dtype), example
    )
    return step, specs


def lower_step(config, size, num_examples=IMAGENET_EXAMPLES):
    """Returns the step of one replica as HLO, and the arithmetic of the model in FLOP."""
    import tensorflow as tf

    from simsiam_tf.training import meter

    step, specs = build_step(config, tf.distribute.get_strategy(), size, num_examples)
    compiled = tf.function(step, jit_compile=True, autograph=False)
    batch = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs)
    graph = compiled.get_concrete_function(batch).graph
    return chips.lower(compiled, batch), meter.count_flops(graph.get_operations())


def describe(config, size):
    """Returns a short description of the step."""
    parts = [
        config.method.method,
        config.encoder.backbone,
        f"{config.views.image_size}",
        f"batch {size}",
        config.system.precision,
    ]
    if config.views.augment_on == "device":
        parts.append("--augment_on=device")
    return ", ".join(parts)


def print_table(rows):
    """Prints dicts with the same keys as a Markdown table."""
    if not rows:
        return
    print(f"| {' | '.join(_HEADINGS.get(key, key) for key in rows[0])} |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        print(f"| {' | '.join(map(_cell, row.values()))} |")


def _cell(value):
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


if __name__ == "__main__":
    main(sys.argv[1:])
