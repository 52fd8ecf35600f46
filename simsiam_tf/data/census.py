"""Reads every image of a data set once, and keeps about a hundred bytes of facts about each."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import imagehash
import numpy as np
import tensorflow as tf
from PIL import Image

from simsiam_tf.config import Purpose
from simsiam_tf.data import image_files
from simsiam_tf.data.datasets import subset
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.data.order import epoch_order, fold_in
from simsiam_tf.data.pixels import RGB
from simsiam_tf.data.quarantine import READ_ERRORS, reason_of
from simsiam_tf.data.source import UNLABELLED, Source, StreamImages
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress

MAX_UNREADABLE = 10_000  # whose reasons are kept
_MAX_REASONS = 100  # that are counted apart
_OTHER_REASONS = "other reasons"
_CHUNK = 8  # images that a thread reads at once
_TF_KINDS = ("JPEG", "PNG", "BMP")  # of 8 bits: a run decodes them by TensorFlow
_HASH_SIZE = 64  # pixels of the image that is hashed
_COLORS_SIZE = 4
_GRAY_LEVELS = 2  # between the channels of a grey picture, which JPEG may round

# A row about each image. A million images take 115 MB.
RECORD = np.dtype(
    [
        ("index", np.int64),
        ("readable", bool),
        ("label", np.int32),
        ("digest", np.uint64, 2),  # half of the file's SHA-256
        ("hash", np.uint64),  # perceptual: close for pictures that look alike
        ("colors", np.uint8, _COLORS_SIZE**2 * 3),  # the picture in 4x4 pixels
        ("kind", "S4"),  # the file's format; this and what follows is as in `image_files.Facts`
        ("width", np.int32),
        ("height", np.int32),
        ("channels", np.int32),
        ("dtype", "S8"),
        ("has_more", bool),
        ("orientation", np.uint8),
        ("is_gray", bool),  # three channels, which are equal
    ]
)


@dataclasses.dataclass(frozen=True)
class Census:
    """The facts about the images of a source.

    Attributes:
      source: the `Source`.
      records: `[n]` of `RECORD`, in order of the index; n is less than the source's number of
        images where only a sample was read.
      extremes: dtype of more than 8 bits → its smallest and largest finite level.
      reasons: reason → number of images that cannot be read for it.
      unreadable: index → the exact reason, of the first `MAX_UNREADABLE` such images.
      num_bytes: of all files.
    """

    source: Source
    records: np.ndarray
    extremes: dict[str, tuple[float, float]]
    reasons: dict[str, int]
    unreadable: dict[int, str]
    num_bytes: int

    @property
    def num_unreadable(self) -> int:
        """Number of images that cannot be read."""
        return int(np.sum(~self.records["readable"]))

    @functools.cached_property
    def readable(self) -> np.ndarray:
        """The records of the images that can be read."""
        is_readable = self.records["readable"]
        return self.records if is_readable.all() else self.records[is_readable]

    @property
    def short_sides(self) -> np.ndarray:
        """The shorter of width and height of each readable image, in pixels."""
        return np.minimum(self.readable["width"], self.readable["height"])

    @property
    def aspect_ratios(self) -> np.ndarray:
        """The longer side divided by the shorter one, of each readable image."""
        return np.maximum(self.readable["width"], self.readable["height"]) / self.short_sides

    def counts(self, field: str) -> dict:
        """Returns {value of a field: number of readable images}, the most frequent first."""
        values, counts = np.unique(self.readable[field], return_counts=True)
        found = {}
        for place in np.argsort(-counts, kind="stable"):
            value = values[place].item()
            found[value.decode() if isinstance(value, bytes) else value] = int(counts[place])
        return found


_Example = tuple[int, bytes | str, int]  # index, the file (or why it cannot be read), label


@dataclasses.dataclass(frozen=True)
class _Sight:
    """The facts that a thread collects about one image."""

    record: np.ndarray  # [] of RECORD
    num_bytes: int
    reason: str  # why it cannot be read; else empty
    extremes: tuple[float, float] | None = None  # of more than 8 bits


def take_census(
    source: Source, max_pixels: int, *, upright: bool, limit: int = 0, seed: int = 0
) -> Census:
    """Reads and decodes the images, several at once, as a run would.

    Args:
      source: the `Source`.
      max_pixels: largest number of pixels of an image; a larger image counts as unreadable.
      upright: turn images as EXIF says before they are compared.
      limit: number of images, which are a random sample; 0: all.
      seed: of the sample.

    Raises:
      UserError: the stream of a source breaks off.
    """
    count = min(limit or source.num_examples, source.num_examples)
    records = np.zeros(count, RECORD)
    extremes: dict[str, tuple[float, float]] = {}
    reasons: collections.Counter[str] = collections.Counter()
    unreadable: dict[int, str] = {}
    num_bytes = number = 0
    with Progress(count, f"images of {source.name}", "image") as progress:
        for sight in _sights(source, count, seed, _build_look(max_pixels, upright)):
            records[number] = sight.record
            number += 1
            num_bytes += sight.num_bytes
            if sight.reason:
                reason = _kind_of(sight.reason)
                is_known = reason in reasons or len(reasons) < _MAX_REASONS
                reasons[reason if is_known else _OTHER_REASONS] += 1
                if len(unreadable) < MAX_UNREADABLE:
                    unreadable[int(sight.record["index"])] = sight.reason
            if sight.extremes:
                dtype = sight.record["dtype"].item().decode()
                low, high = extremes.get(dtype, sight.extremes)
                extremes[dtype] = min(low, sight.extremes[0]), max(high, sight.extremes[1])
            progress.update(1)
    records = records[:number]
    return Census(
        source,
        records[np.argsort(records["index"])],
        extremes,
        dict(reasons.most_common()),
        dict(sorted(unreadable.items())),
        num_bytes,
    )


def _kind_of(reason: str) -> str:
    """Returns a reason without the numbers of the one image."""
    return re.split(r"[;(]", reason)[0].strip() or reason


# Reading, in threads.


def _sights(
    source: Source, count: int, seed: int, look: Callable[[_Example], _Sight]
) -> Iterator[_Sight]:
    """Yields what is found out about each image, in any order."""
    if source.stream:
        chunks: Iterable = _streamed(source, source.stream, count, seed)
        read: Callable[[Any], list[_Example]] = list
    else:
        indices = np.arange(source.num_examples, dtype=np.int64)
        if count < source.num_examples:
            offsets = tf.range(count, dtype=tf.int64)
            sample = epoch_order(source.num_examples, seed, 0, offsets, Purpose.SUBSET)
            indices = np.sort(sample.numpy())  # neighbours in a file are read together
        size = max(_CHUNK, source.read_at_once)
        chunks = (indices[start : start + size] for start in range(0, count, size))
        read = _build_read(source)

    def look_at(chunk: Any) -> list[_Sight]:
        return [look(example) for example in read(chunk)]

    threads = 2 * (os.cpu_count() or 1)  # half of them wait for the disk
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # No more chunks than these are in memory.
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for chunk in chunks:
            pending.append(pool.submit(look_at, chunk))
            if len(pending) > 2 * threads:
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()


def _build_read(source: Source) -> Callable[[np.ndarray], list[_Example]]:
    """Returns a function that reads images by index; an unreadable one has a reason instead."""
    signature = [tf.TensorSpec([None], tf.int64)]
    read_images = tf.function(source.read, input_signature=signature, autograph=False)

    def read(indices: np.ndarray) -> list[_Example]:
        try:
            files, labels = read_images(tf.constant(indices))
        except READ_ERRORS as error:
            if len(indices) == 1:
                label = UNLABELLED if source.labels is None else int(source.labels[indices[0]])
                return [(int(indices[0]), reason_of(error), label)]
            return [example for index in indices for example in read(index[np.newaxis])]
        return list(zip(indices.tolist(), files.numpy(), labels.numpy().tolist(), strict=True))

    return read


def _streamed(
    source: Source, stream: StreamImages, count: int, seed: int
) -> Iterator[list[_Example]]:
    subset_seed = fold_in([seed, Purpose.SUBSET]) if count < source.num_examples else None
    examples = stream(subset_seed, lambda records: records.take(count))
    try:
        for columns in examples.batch(_CHUNK).as_numpy_iterator():
            yield list(zip(*(column.tolist() for column in columns), strict=True))
    except READ_ERRORS as error:
        raise UserError(f"{source.name} cannot be read ({reason_of(error)})") from error


def read_some(source: Source, indices: Sequence[int]) -> dict[int, bytes]:
    """Returns the files of some images by index; those that cannot be read are left out.

    Args:
      source: the `Source`.
      indices: of the images, which all fit into memory.
    """
    if not len(indices):
        return {}
    few = subset(source, np.asarray(indices, np.int64))
    if few.stream:
        examples = [*itertools.chain(*_streamed(few, few.stream, len(indices), 0))]
    else:
        read = _build_read(few)
        examples = [*itertools.chain(*(read(np.array([n])) for n in range(len(indices))))]
    return {indices[number]: file for number, file, _ in examples if isinstance(file, bytes)}


# Facts about one image.


def _build_look(max_pixels: int, upright: bool) -> Callable[[_Example], _Sight]:
    pixels = dataclasses.replace(RGB, exif_orientation="apply" if upright else "ignore")

    def decode(encoded: bytes, facts: image_files.Facts) -> tuple[np.ndarray, str]:
        if facts.kind not in _TF_KINDS or facts.dtype != "uint8":
            return image_files.decode(encoded, max_pixels, upright=upright)
        try:
            return decode_image(encoded, max_pixels, pixels).numpy(), ""
        except READ_ERRORS as error:
            return np.zeros((0, 0, 3), np.uint8), reason_of(error)

    def look(example: _Example) -> _Sight:
        index, encoded, label = example
        record = np.zeros((), RECORD)
        record["index"], record["label"] = index, label
        if isinstance(encoded, str):
            return _Sight(record, 0, encoded)
        record["digest"] = np.frombuffer(hashlib.sha256(encoded).digest()[:16], np.uint64)
        try:
            facts = image_files.read_facts(encoded)
        except image_files.UnreadableError as error:
            return _Sight(record, len(encoded), str(error))
        levels, reason = decode(encoded, facts)
        if reason or not levels.size:
            return _Sight(record, len(encoded), reason or "an image without pixels")
        for name in ("kind", "width", "height", "channels", "has_more"):
            record[name] = getattr(facts, name)
        record["dtype"] = levels.dtype.name
        record["orientation"] = facts.orientation if 1 <= facts.orientation <= 8 else 1
        record["readable"] = True
        extremes = None if levels.dtype == np.uint8 else _extremes(levels)
        _describe(_picture(levels, extremes), record)
        return _Sight(record, len(encoded), "", extremes)

    return look


def _describe(picture: Image.Image, record: np.ndarray) -> None:
    """Writes into a record what tells whether its picture looks like others."""
    bits = imagehash.phash(picture).hash  # 8 by 8
    record["hash"] = int.from_bytes(np.packbits(bits).tobytes(), "big")
    small = picture.resize((_COLORS_SIZE, _COLORS_SIZE), Image.Resampling.BOX)
    record["colors"] = np.asarray(small).ravel()
    difference = np.ptp(np.asarray(picture).astype(np.int16), axis=-1).max()
    record["is_gray"] = record["channels"] == 3 and difference <= _GRAY_LEVELS


def _extremes(levels: np.ndarray) -> tuple[float, float]:
    finite = levels[np.isfinite(levels)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _picture(levels: np.ndarray, extremes: tuple[float, float] | None) -> Image.Image:
    """Returns a small RGB picture of levels; more than 8 bits are stretched to their extremes."""
    levels = levels[..., :3] if levels.shape[-1] >= 3 else levels[..., 0]
    if extremes:
        low, high = extremes
        step = max(1, min(levels.shape[:2]) // (2 * _HASH_SIZE))  # saves the memory of floats
        numbers = np.nan_to_num(levels[::step, ::step].astype(np.float64), posinf=high, neginf=low)
        levels = np.clip((numbers - low) * (255 / ((high - low) or 1)), 0, 255).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels)).convert("RGB")
    return image.resize((_HASH_SIZE, _HASH_SIZE), Image.Resampling.BOX)
