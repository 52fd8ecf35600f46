"""Chooses the flags of a run by its images: how views are made, how the network is sized.

`simsiam-inspect` suggests those that follow from the images alone, `--recipe=auto` takes all.
"""

import dataclasses
import math
import os
from typing import Any

import numpy as np

from simsiam_tf import storage
from simsiam_tf.config import DataConfig, PretrainConfig, ViewsConfig
from simsiam_tf.data.census import Census
from simsiam_tf.data.folders import folder_splits
from simsiam_tf.data.sampling import range_of

_SIZES = (32, 48, 64, 96, 128, 160, 192, 224)  # of views
_SMALLEST = 16  # pixels of a view; smaller images are enlarged, or the network's last maps are dots
_LARGEST_SMALL = 64  # pixels; views up to this size take the stem of CIFAR
_LARGEST_SHARP = 32  # pixels; the paper does not blur views of this size (appendix D)
_COLORFUL = 10  # levels of 255 between the channels, on average; below, colours tell nothing
_SMALLEST_CROP = 12  # pixels; smaller crops show too little
# The paper's best results are with 256 or 512 (Table 2). Batch normalization needs some images, an
# epoch some steps.
_SMALLEST_BATCH, _LARGEST_BATCH, _MIN_STEPS = 16, 256, 8
# The network grows with the number of images: SimSiam collapses in part where it is too small for
# them (Li, Efros & Pathak 2022). {fewest images: (backbone, width)}
_NETWORKS = {
    0: ("resnet18", 16),
    2_000: ("resnet18", 32),
    20_000: ("resnet18", 64),
    500_000: ("resnet50", 64),
}
# The paper trains 1.28 million images for 100 epochs, and the 50,000 of CIFAR-10 for 800: between
# the two, epochs fall with the square root of the number of images.
_EPOCHS_OF_IMAGENET, _IMAGENET = 100, 1_280_000
_MOST_EPOCHS = 800
_WARMUP_SHARE, _MOST_WARMUP = 0.1, 10


@dataclasses.dataclass(frozen=True)
class Choice:
    """The value of a flag, and in a few words why; no reason: it was given."""

    value: Any
    reason: str = ""


def values_of(choices: dict[str, Choice]) -> dict[str, Any]:
    """Returns {flag name: value}."""
    return {name: choice.value for name, choice in choices.items()}


def reasons_of(choices: dict[str, Choice]) -> dict[str, str]:
    """Returns {flag name: reason} of the choices that have one."""
    return {name: choice.reason for name, choice in choices.items() if choice.reason}


def for_images(census: Census, config: PretrainConfig) -> dict[str, Choice]:
    """Returns the flags that follow from the images.

    Args:
      census: of the images, of which at least one can be read.
      config: the flags that are given.
    """
    data = config.data
    found: dict[str, Choice] = {"dataset": Choice(data.dataset)}
    if data.data_dir:
        is_path = not storage.is_url(data.data_dir)
        path = os.path.abspath(os.path.expanduser(data.data_dir)) if is_path else data.data_dir
        found["data_dir"] = Choice(path)
    if data.train_split != DataConfig.train_split:
        found["train_split"] = Choice(data.train_split)
    if data.dataset == "folder":
        others = [name for name in folder_splits(data.data_dir) if name != data.train_split]
        if others and data.eval_split not in others:
            found["eval_split"] = Choice(others[0], "the folder's other split")
    found |= _views(census, config)
    found["channels"] = Choice(*_channels(census))
    if census.extremes:
        low, high = _range(census)
        found["value_range"] = Choice(f"{low:.9g},{high:.9g}", "the values in the files")
    count = census.source.num_examples
    most = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, count // _MIN_STEPS), max(2, count // 2))
    found["batch_size"] = Choice(
        2 ** int(math.log2(most)),
        f"{_MIN_STEPS} steps in an epoch of {count:,} images, from {_SMALLEST_BATCH} to "
        f"{_LARGEST_BATCH}",
    )
    num_bad = census.num_unreadable + int(np.sum(~fits(census, found["channels"].value)))
    if num_bad:
        share = num_bad / len(census.records)
        reason = f"{num_bad:,} of {len(census.records):,} images cannot be used"
        found["on_bad_image"] = Choice("skip", reason)
        if share > data.max_bad_fraction:
            bound = min(1.0, math.ceil(100 * share + 1) / 100)
            found["max_bad_fraction"] = Choice(bound, reason)
    return found


def _views(census: Census, config: PretrainConfig) -> dict[str, Choice]:
    median = int(np.median(census.short_sides))
    small = max(_SMALLEST, median // 4 * 4)
    size = max([one for one in _SIZES if one <= median], default=small)
    sides = f"half of the images have a short side of {median:,} pixels or less"
    found = {
        "image_size": Choice(size, sides),
        "stem": Choice(
            "cifar" if size <= _LARGEST_SMALL else "imagenet",
            f"the stem of CIFAR is for views of {_LARGEST_SMALL} pixels or less",
        ),
    }
    smallest = (_SMALLEST_CROP / median) ** 2
    if smallest > config.views.crop_min_area:
        area = min(0.6, math.ceil(10 * smallest) / 10)
        found["crop_min_area"] = Choice(area, f"smaller crops of {median} pixels show too little")
    if size <= _LARGEST_SHARP:
        reason = f"views of {size} pixels are not blurred (paper, appendix D)"
        found["blur_probability"] = Choice(0.0, reason)
        found["eval_crop_ratio"] = Choice(1.0, f"views of {size} pixels have no border to spare")
    elif size < ViewsConfig.image_size:
        sigma = round(ViewsConfig.blur_sigma_max * size / ViewsConfig.image_size, 2)
        found["blur_sigma_max"] = Choice(sigma, f"2 pixels of 224 are {sigma} of {size}")
    return found | _colors(census)


def _colors(census: Census) -> dict[str, Choice]:
    if not (census.readable["channels"] == 3).all() or census.extremes:
        return {}
    colors = census.readable["colors"].reshape(-1, 3).astype(int)
    colorfulness = float(np.mean(np.ptp(colors, axis=1)))
    if colorfulness >= _COLORFUL:
        return {}
    reason = f"the images have hardly any colour: the channels differ by {colorfulness:.0f} of 255"
    names = ("saturation", "hue", "grayscale_probability")
    return dict.fromkeys(names, Choice(0.0, reason))


def _channels(census: Census) -> tuple[int, str]:
    """Returns the number of channels that most images have, and the reason."""
    counts = census.counts("channels")
    most = next(iter(counts))
    if most == 3 and census.readable["is_gray"].all():
        return 1, "all images are grey, though stored as RGB"
    if most == 1 and 3 in counts:
        return 3, "some of the images are RGB"
    return most, f"{counts[most]:,} of {len(census.readable):,} images have {most}"


def fits(census: Census, channels: int) -> np.ndarray:
    """Returns which readable images have these channels or are converted to them, `[r]` bool."""
    return np.isin(census.readable["channels"], (1, 3) if channels in (1, 3) else (channels,))


def _range(census: Census) -> tuple[float, float]:
    return range_of([np.array(pair, dtype) for dtype, pair in census.extremes.items()])


def for_training(census: Census, epochs: int | None = None) -> dict[str, Choice]:
    """Returns the flags of the network and of the training, except for the learning rate.

    Args:
      census: of the images, of which at least one can be read.
      epochs: as given; None: they are chosen.
    """
    count = census.source.num_examples
    bound = max(fewest for fewest in _NETWORKS if count >= fewest)
    backbone, width = _NETWORKS[bound]
    dim = width * (32 if backbone == "resnet50" else 8)
    size = f"for {count:,} images: a network too small for its images collapses in part"
    heads = f"as the features, {dim}"
    if epochs is None:
        epochs = round(_EPOCHS_OF_IMAGENET * math.sqrt(_IMAGENET / count))
        epochs = min(_MOST_EPOCHS, epochs)
    found = {
        "backbone": Choice(backbone, size),
        "width": Choice(width, size),
        "projection_dim": Choice(dim, heads),
        "prediction_hidden_dim": Choice(dim // 4, "a quarter of the projection, as in the paper"),
        "epochs": Choice(epochs, f"{count:,} images; the paper's 100 are for {_IMAGENET:,}"),
    }
    found |= for_epochs(epochs)
    classes = len(census.source.class_names)
    if classes:
        k = max(5, min(200, count // classes // 7))
        found["knn_k"] = Choice(k, f"a seventh of a class of {count // classes:,}, at most 200")
    return found


def for_epochs(epochs: int) -> dict[str, Choice]:
    """Returns the flags that follow from the number of epochs."""
    warmup = min(_MOST_WARMUP, round(_WARMUP_SHARE * epochs))
    often = max(1, epochs // 100)
    return {
        "warmup_epochs": Choice(warmup, f"a tenth of {epochs} epochs, at most {_MOST_WARMUP}"),
        "health_every_epochs": Choice(often, "about a hundred times in the run"),
        "knn_every_epochs": Choice(max(1, epochs // 20), "about twenty times in the run"),
    }
