"""Compares the speed of making two views of each photograph with Pillow in PyTorch's DataLoader.

python benchmarks/pipeline.py --folder=photos --output=pipeline.json

The peer is the reference's pipeline: torchvision's recipe, written with the Pillow functions that
it calls, in one DataLoader worker per core. This project's side is the run's own pipeline, from
files to batches. The result is in pairs per second after the warm-up. The program needs
benchmarks/requirements.txt.
"""

import argparse
import itertools
import math
import os
import random
import sys
import time

import measure

SIDES = ("Pillow, DataLoader", "host", "device: host's part", "decoding alone")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARM_UP_BATCHES = 8


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--folder", required=True, help="folder of JPEG files, at least one batch")
    parser.add_argument("--batch_size", type=int, default=32, help="photographs in a batch")
    parser.add_argument("--batches", type=int, default=30, help="batches in a measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side")
    parser.add_argument("--image_size", type=int, default=224, help="height and width of a view")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", help="JSON file to which the result is appended")
    options = parser.parse_args(arguments)
    if options.side:
        batches = (peer if options.side == SIDES[0] else ours)(options)
        measure.serve(lambda: pairs_per_second(batches, options))
        return
    measure.compare(
        f"Two views of photographs at {options.image_size}, batches of {options.batch_size}",
        SIDES,
        arguments,
        options.rounds,
        "pairs/s",
        peers=SIDES[:1],
        output=options.output,
    )


def pairs_per_second(batches, options):
    for _ in range(WARM_UP_BATCHES):  # discards the batches prepared since the last measurement
        next(batches)
    started = time.perf_counter()
    for _ in range(options.batches):
        next(batches)
    rate = options.batches * options.batch_size / (time.perf_counter() - started)
    return {"value": rate, "peak MB": measure.peak_memory()}


def ours(options):
    import simsiam_tf  # noqa: F401  (before TensorFlow)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    from simsiam_tf.config import ViewsConfig
    from simsiam_tf.data import datasets, pipeline, views

    tf.config.experimental.enable_op_determinism()  # as in a run
    source = datasets.load("folder", options.folder, "train")
    config = ViewsConfig(
        image_size=options.image_size,
        augment_on="device" if options.side == SIDES[2] else "host",
    )

    def decoded(image, seed):
        del seed
        return {"views": (tf.shape(image),)}

    batches = pipeline.training_batches(
        source,
        decoded if options.side == SIDES[3] else views.build_views(config, 2),
        batch_size=options.batch_size,
        seed=0,
        first_step=0,
        last_step=1_000_000,
    )
    return iter(batches)


def peer(options):
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    names = sorted(os.listdir(options.folder))

    class Photographs(Dataset):
        def __len__(self):
            return len(names)

        def __getitem__(self, index):
            image = Image.open(os.path.join(options.folder, names[index])).convert("RGB")
            return [to_tensor(torch, augment(image, options.image_size)) for _ in range(2)]

    loader = DataLoader(
        Photographs(),
        options.batch_size,
        shuffle=True,
        num_workers=os.cpu_count(),
        drop_last=True,
        persistent_workers=True,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def to_tensor(torch, image):
    """Returns the result of torchvision's ToTensor and Normalize."""
    import numpy as np

    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return tensor.sub_(mean).div_(std)


def augment(image, size):
    """Returns one view by the recipe of section 3, as torchvision makes it from a Pillow image."""
    from PIL import Image, ImageEnhance, ImageFilter

    left, top, width, height = random_box(*image.size)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    if random.random() < 0.8:
        jitter = [
            lambda image: ImageEnhance.Brightness(image).enhance(random.uniform(0.6, 1.4)),
            lambda image: ImageEnhance.Contrast(image).enhance(random.uniform(0.6, 1.4)),
            lambda image: ImageEnhance.Color(image).enhance(random.uniform(0.6, 1.4)),
            lambda image: shift_hue(image, random.uniform(-0.1, 0.1)),
        ]
        for operation in random.sample(jitter, len(jitter)):
            image = operation(image)
    if random.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def random_box(width, height):
    for _ in range(10):
        area = width * height * random.uniform(0.2, 1)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    return 0, 0, width, height


def shift_hue(image, turns):
    import numpy as np
    from PIL import Image

    hue, saturation, value = image.convert("HSV").split()
    shifted = np.asarray(hue) + np.uint8(int(turns * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


if __name__ == "__main__":
    main(sys.argv[1:])
