"""Compares the speed of a training step with the fastest of PyTorch's forms, on the same cores.

python benchmarks/train_step.py --backbone=resnet50 --image_size=224 --batch_size=8
python benchmarks/train_step.py --batch_size=16 --sides "ours" "ours, bfloat16"

All sides compute the forward pass, the backward pass and the SGD update for the same normalised
views. The peers use tests/interop/torch_copy.py, the reference network with PyTorch's own
convolution, batch normalization and optimizer. They run it eagerly, with channels last in memory,
and compiled by inductor, which needs a C++ compiler. The result is in images per second; an image
is two views. The program needs benchmarks/requirements.txt.
"""

import argparse
import itertools
import os
import shutil
import sys
import time

import measure

EAGER, CHANNELS_LAST, COMPILED = PEERS = (
    "PyTorch, eager",
    "PyTorch, channels last",
    "PyTorch, compiled",
)
# The flags of each of this project's sides.
OURS = {
    "ours": {},
    "ours, XLA": {"xla": "true"},
    "ours, bfloat16": {"precision": "mixed_bfloat16"},
}
SIDES = (*PEERS, *OURS)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--backbone", default="resnet50", help="as in train.py")
    parser.add_argument("--stem", default="imagenet", help="as in train.py")
    parser.add_argument("--image_size", type=int, default=224, help="height and width of a view")
    parser.add_argument("--batch_size", type=int, default=8, help="images in a batch")
    parser.add_argument(
        "--precision",
        default="float32",
        help="precision of this project's sides, unless a side names one",
    )
    parser.add_argument("--steps", type=int, default=5, help="steps in a measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, metavar="SIDE",
                        help=f"sides to measure: {'; '.join(SIDES)}")  # fmt: skip
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", help="JSON file to which the result is appended")
    options = parser.parse_args(arguments)
    if options.side:
        step = (ours if options.side in OURS else peer)(options)
        for _ in range(2):
            step()
        measure.serve(lambda: images_per_second(step, options))
        return
    sides = list(options.sides)
    if COMPILED in sides and not shutil.which(os.environ.get("CXX", "g++")):
        sides.remove(COMPILED)
        print(f"{COMPILED}: skipped, because there is no C++ compiler; install g++, or set CXX")
    measure.compare(
        f"A training step of {options.backbone}, {options.stem} stem, at {options.image_size}, "
        f"batch {options.batch_size}, ours in {options.precision}",
        sides,
        arguments,
        options.rounds,
        "images/s",
        peers=PEERS,
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
    from ours import build, compiled_step, tf  # sets oneDNN's switch before TensorFlow loads

    names = ("backbone", "stem", "image_size", "batch_size", "precision")
    flags = {name: getattr(options, name) for name in names}
    config, _, model = build(**flags | OURS[options.side])
    train_step = compiled_step(config, model)
    views = tuple(map(tf.constant, random_views(options)))
    return lambda: float(train_step({"views": views})["loss"])


def peer(options):
    import torch
    from interop import torch_copy

    state = torch_copy.initial_state(options.backbone, options.stem)
    views = torch.from_numpy(random_views(options)).permute(0, 1, 4, 2, 3)  # NHWC in memory
    loss_of = torch_copy.views_loss
    if options.side == EAGER:
        views = views.contiguous()
    else:
        state = torch_copy.channels_last(state)
    if options.side == COMPILED:
        loss_of = torch.compile(loss_of)
    steps = torch_copy.train(state, itertools.repeat(views), itertools.repeat(0.05), 0.05, loss_of)
    return lambda: next(steps)[0]


if __name__ == "__main__":
    main(sys.argv[1:])
