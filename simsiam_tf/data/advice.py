"""Turns the facts about a data set into warnings with a remedy."""

import dataclasses
from typing import Any

import numpy as np

from simsiam_tf.config import PretrainConfig
from simsiam_tf.data.census import Census
from simsiam_tf.data.choices import fits

_LARGE = 1024  # pixels of the short side, from which decoding takes most of the time
_EXTREME_RATIO = 3  # of the sides
_RARE = 0.01  # share of a class


@dataclasses.dataclass(frozen=True)
class Advice:
    """One line: what was found, and what to do.

    Attributes:
      kind: "bad" if a run would fail or learn from wrong images, "doubtful" if it would learn less,
        "open" if the reader should only know.
      text: one sentence.
    """

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Groups of indices into `Census.records`: of equal files, and of files that look alike."""

    exact: list[np.ndarray]
    near: list[np.ndarray]

    @staticmethod
    def num_copies(groups: list[np.ndarray]) -> int:
        """Returns the number of images that are left over if one of each group is kept."""
        return sum(len(group) - 1 for group in groups)


def advise(
    census: Census, duplicates: Duplicates, suggested: dict[str, Any], config: PretrainConfig
) -> list[Advice]:
    """Returns the warnings, the most important first.

    Args:
      census: of the images.
      duplicates: among them.
      suggested: the values of `choices.for_images`; empty if no image can be read.
      config: the flags of the inspection.
    """
    found = [*_unreadable(census, config)]
    if suggested:
        found += _channels_and_bits(census, suggested)
        found += _batch(census, suggested, config)
        found += _sizes(census, suggested, config)
        found += _duplicates(census, duplicates)
        found += _classes(census)
        found += _orientations(census, config)
        found += _shapes(census)
    order = ("bad", "doubtful", "open")
    return sorted(found, key=lambda advice: order.index(advice.kind))


def _unreadable(census, config):
    count, total = census.num_unreadable, len(census.records)
    if count == total:
        yield Advice("bad", "No image can be read: the reasons are below.")
    elif count:
        is_most = count > config.data.max_bad_fraction * total
        remedy = "--on_bad_image=skip, or remove them"
        if is_most:
            remedy = (
                "remove them; --on_bad_image=skip alone stops above "
                f"--max_bad_fraction={config.data.max_bad_fraction:g}"
            )
        yield Advice("bad", f"{_images(count)} cannot be read ({share(count, total)}): {remedy}.")


def _batch(census, suggested, config):
    count, batch_size = census.source.num_examples, config.optimization.batch_size
    if count < batch_size:
        yield Advice(
            "bad",
            f"{_images(count)} {_are(count)} fewer than --batch_size={batch_size}: choose "
            f"--batch_size={suggested['batch_size']}.",
        )


def _channels_and_bits(census, suggested):
    total, channels = len(census.readable), suggested["channels"]
    unfit = int(np.sum(~fits(census, channels)))
    if unfit:
        counts = census.counts("channels").items()
        text = ", ".join(f"{count:,} of {number}" for number, count in counts)
        yield Advice(
            "bad",
            f"{_images(unfit)} cannot be used with the others, because the numbers of channels "
            f"differ ({text}): remove them, or --channels={channels} --on_bad_image=skip.",
        )
    if census.extremes:
        deep = sum(count for name, count in census.counts("dtype").items() if name != "uint8")
        low = min(pair[0] for pair in census.extremes.values())
        high = max(pair[1] for pair in census.extremes.values())
        yield Advice(
            "open" if deep == total else "doubtful",
            f"{_images(deep)} {'has' if deep == 1 else 'have'} more than 8 bits, with values from "
            f"{low:g} to {high:g}: --value_range={suggested['value_range']} makes these black and "
            "white; name another range if yours is narrower.",
        )
    gray = census.counts("channels").get(1, 0) + int(np.sum(census.readable["is_gray"]))
    if channels == 3 and 0 < gray < total:
        yield Advice(
            "open" if gray < total / 2 else "doubtful",
            f"{_images(gray)} {_are(gray)} grey among RGB ({share(gray, total)}): features may "
            "tell grey from colour; --channels=1 makes all of them grey.",
        )
    elif gray == total and 3 in census.counts("channels"):
        yield Advice("doubtful", "All images are grey but stored as RGB: choose --channels=1.")


def _sizes(census, suggested, config):
    sides, size = census.short_sides, config.views.image_size
    smaller = int(np.sum(sides < size))
    if smaller > 0.1 * len(sides):
        remedy = f"choose --image_size={suggested['image_size']}, or expect blur"
        if suggested["image_size"] >= size:
            remedy = "their views are blurred"
        yield Advice(
            "doubtful",
            f"{share(smaller, len(sides))} of the images are smaller than --image_size={size}: "
            f"{remedy}.",
        )
    median = int(np.median(sides))
    if median >= _LARGE:
        yield Advice(
            "doubtful",
            f"Half of the images have a short side of {median:,} pixels or more, which decoding "
            "makes slow: pack smaller copies by simsiam-pack --max_side=512.",
        )


def _duplicates(census, duplicates):
    total = len(census.readable)
    labels = census.readable["label"]
    groups = [*duplicates.exact, *duplicates.near]
    mixed = sum(len(set(labels[group].tolist())) > 1 for group in groups)
    if census.source.labelled and mixed:
        yield Advice(
            "bad",
            f"{mixed:,} group{'s' * (mixed != 1)} of duplicates {'are' if mixed != 1 else 'is'} in "
            "more than one class: keep one image of each, in the right class.",
        )
    texts = {
        "exact duplicates": (duplicates.exact, "the JSON file lists them; remove all but one"),
        "near duplicates": (
            duplicates.near,
            "look at the groups below; views of two copies are easy to match, which teaches little",
        ),
    }
    for name, (groups, remedy) in texts.items():
        copies = duplicates.num_copies(groups)
        if copies:
            kind = "doubtful" if copies > 0.01 * total else "open"
            yield Advice(
                kind,
                f"{share(copies, total)} of the images are {name} ({copies:,} of {total:,}): "
                f"{remedy}.",
            )


def _classes(census):
    sizes = class_sizes(census)
    total = sum(sizes.values())
    bound = min(_RARE, 0.2 / max(len(sizes), 1)) * total  # classes of a thousand are small anyway
    rare = {name: size for name, size in sizes.items() if size < bound}
    if rare:
        name = min(rare, key=lambda name: rare[name])
        rest = f", and {len(rare) - 1:,} more classes are rare too" if len(rare) > 1 else ""
        yield Advice(
            "open",
            f"Class {name} has {share(rare[name], total)} of the images{rest}: pre-training needs "
            "no balance, but accuracies over all images hide rare classes.",
        )


def _orientations(census, config):
    turned = int(np.sum(census.readable["orientation"] != 1))
    if turned and config.pixels.exif_orientation == "apply":
        text = f"turned by EXIF {_are(turned)} turned upright (--exif_orientation=apply)."
        yield Advice("open", f"{_images(turned)} {text}")
    elif turned:
        text = f"turned by EXIF {'stays' if turned == 1 else 'stay'} as stored: "
        yield Advice("doubtful", f"{_images(turned)} {text}choose --exif_orientation=apply.")


def _shapes(census):
    total = len(census.readable)
    extreme = int(np.sum(census.aspect_ratios > _EXTREME_RATIO))
    if extreme:
        yield Advice(
            "doubtful" if extreme > 0.05 * total else "open",
            f"{_images(extreme)} {_are(extreme)} more than {_EXTREME_RATIO} times as long as wide "
            f"({share(extreme, total)}): two crops of one may show different things; cut them into "
            "tiles.",
        )
    several = int(np.sum(census.readable["has_more"]))
    if several:
        yield Advice(
            "open",
            f"{_images(several)} {'has' if several == 1 else 'have'} several frames or pages: only "
            "the first is read; write the others to files of their own if you want them.",
        )


def class_sizes(census: Census) -> dict[str, int]:
    """Returns {class: number of images}, the largest first; empty for unlabelled images."""
    names = census.source.class_names
    if not names:
        return {}
    labels = census.records["label"]
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    return {names[label]: int(counts[label]) for label in order}


def share(count: int, total: int) -> str:
    """Returns a share as text: "38 %", "0.4 %", "under 0.1 %"."""
    percent = 100 * count / total
    if 0 < percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.1f} %" if percent < 1 and count else f"{percent:.0f} %"


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
