"""A training step: ours against PyTorch, eager, on the same cores.

python benchmarks/train_step.py --backbone=resnet50 --image_size=224 --batch_size=8
python benchmarks/train_step.py --backbone=resnet18 --stem=cifar --image_size=32 --batch_size=64

Both sides take the same views, normalised already, forward, back and through SGD. The
peer is tests/interop/torch_twin.py, the reference network with PyTorch's own convolution, batch
normalization and optimizer. Images per second; an image is two views. Needs
benchmarks/requirements.txt.
"""

import argparse
import itertools
import os
import sys
import time

import measure

SIDES = ("PyTorch, eager", "ours", "ours, XLA")


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--stem", default="imagenet")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="that a measurement takes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", type=int, default=3, help="2: without XLA")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", help="a JSON file that the result is added to")
    options = parser.parse_args(arguments)
    if options.side:
        step = (peer if options.side == SIDES[0] else ours)(options)
        for _ in range(2):
            step()
        measure.serve(lambda: images_per_second(step, options))
        return
    measure.compare(
        f"A training step of {options.backbone}, {options.stem} stem, at {options.image_size}, "
        f"batch {options.batch_size}",
        SIDES[: options.sides],
        arguments,
        options.rounds,
        "images/s",
        peer=SIDES[0],
        output=options.output,
    )


def images_per_second(step, options):
    started = time.perf_counter()
    for _ in range(options.steps):
        step()
    rate = options.steps * options.batch_size / (time.perf_counter() - started)
    return {"value": rate, "peak MB": measure.peak_memory()}


def random_views(options):
    import numpy as np

    shape = (2, options.batch_size, options.image_size, options.image_size, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ours(options):
    import simsiam_tf  # noqa: F401  (before TensorFlow)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    from simsiam_tf import schema
    from simsiam_tf.config import PretrainConfig
    from simsiam_tf.training import pretrain

    tf.config.experimental.enable_op_determinism()  # as in a run
    values = schema.defaults(PretrainConfig) | {
        name: getattr(options, name) for name in ("backbone", "stem", "image_size", "batch_size")
    }
    config = schema.build(PretrainConfig, values)
    model, _ = pretrain.build_model(config, tf.distribute.get_strategy())
    train_step = tf.function(model.train_step, jit_compile=options.side == SIDES[2])
    views = tuple(map(tf.constant, random_views(options)))
    return lambda: float(train_step({"views": views})["loss"])


def peer(options):
    import torch
    from interop import torch_twin

    shapes = torch_twin.simsiam_shapes(options.backbone)
    if options.stem == "cifar":
        shapes["encoder.conv1.weight"] = (*shapes["encoder.conv1.weight"][:2], 3, 3)
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            state[name] = torch.nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out")
        else:
            is_one = name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1)
            state[name] = torch.full(shape, float(is_one))
    views = torch.from_numpy(random_views(options).transpose(0, 1, 4, 2, 3).copy())
    steps = torch_twin.train(state, itertools.repeat(views), itertools.repeat(0.05), 0.05)
    return lambda: next(steps)[0]


if __name__ == "__main__":
    main(sys.argv[1:])
