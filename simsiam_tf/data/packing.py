"""The work of `simsiam-pack`: from any source to ArrayRecord files with a manifest."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from array_record.python import array_record_module
from PIL import Image

from simsiam_tf import files
from simsiam_tf.data import datasets
from simsiam_tf.data.pack_settings import PackConfig
from simsiam_tf.data.packed import (
    Manifest,
    Shard,
    Split,
    complete_splits,
    has_size,
    read_manifest,
    shard_of,
    write_manifest,
)
from simsiam_tf.data.quarantine import READ_ERRORS, reason_of
from simsiam_tf.data.source import Source
from simsiam_tf.schema import UserError, one_line
from simsiam_tf.terminal import Progress

# One image in a group, so that an image is read alone. Encoded images cannot be compressed.
_OPTIONS = "group_size:1,uncompressed"
_IMAGES_AT_ONCE = 32
_UNCHANGED, _REENCODED, _KEPT_LARGE = range(3)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of at most 8 bits
_PNG_SIGNATURE, _PNG_DEPTH_AT = b"\x89PNG\r\n\x1a\n", 24
_ORIENTATION = 0x0112  # EXIF's tag
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class _Part:
    """The images of a shard: those from `first` to `last` − 1 of the source."""

    file: str
    first: int
    last: int


def pack(config: PackConfig) -> str:
    """Packs the splits of a data set and returns a line about the result.

    Shards that an earlier, stopped call has finished are kept.

    Args:
      config: what to pack, and where to.

    Raises:
      UserError: the data set or an image cannot be read, the folder cannot be written to, or it
        holds another packed data set.
    """
    sources = {
        split: datasets.load(config.dataset, config.data_dir, split) for split in config.splits
    }
    request = {
        "dataset": config.dataset,
        "max_side": config.max_side,
        "images_per_shard": config.images_per_shard,
        "splits": {
            split: {
                "num_images": source.num_examples,
                "class_names": list(source.class_names),
                "fingerprint": source.fingerprint(),
            }
            for split, source in sources.items()
        },
    }
    root = os.path.expanduser(config.output)
    with _writing_to(config.output):
        files.make_folder(root)
        finished = _finished_shards(root, request)
        splits = {
            split: Split(
                source.class_names,
                tuple(_pack_split(config, root, split, source, finished)),
            )
            for split, source in sources.items()
        }
        write_manifest(root, Manifest(request, splits))
        for path in _entries_of(root):
            files.remove(path)
    found = [shard for split in splits.values() for shard in split.shards]
    kept_large = sum(shard.num_kept_large for shard in found)
    if kept_large:
        logging.warning(
            "%d images are larger than --max_side or cannot be opened, and are as they were: "
            "images of more than 8 bits, of several frames, of other formats, and damaged ones",
            kept_large,
        )
    return (
        f"{config.output}: {sum(len(shard.labels) for shard in found)} images in {len(found)} "
        f"files, {sum(shard.num_bytes for shard in found) / 1e6:.1f} MB; "
        f"{sum(shard.num_reencoded for shard in found)} images were made smaller"
    )


def verify(output: str) -> str:
    """Reads all files of a packed data set and returns a line about the result.

    Args:
      output: the folder.

    Raises:
      UserError: packing has not finished, or a file is not the one that was written.
    """
    root = os.path.expanduser(output)
    found = [shard for split in complete_splits(root).values() for shard in split.shards]
    with Progress(len(found), "verify", "file") as progress:
        for shard in found:
            path = os.path.join(root, shard.file)
            if not has_size(root, shard) or _sha256_of(path) != shard.sha256:
                raise UserError(
                    "A file of the packed data set is missing or damaged; remove it and run "
                    f"simsiam-pack with the same flags again. Received: {path}"
                )
            progress.update(1)
    num_images = sum(len(shard.labels) for shard in found)
    return f"{output}: {num_images} images in {len(found)} files are as they were written"


@contextlib.contextmanager
def _writing_to(output: str) -> Iterator[None]:
    """A context in which a full, read-only or missing disk raises a `UserError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
        reason = files.reason_of(error) if isinstance(error, OSError) else one_line(error)
        raise UserError(
            f"--output cannot be written to ({reason}). The same command goes on once there is "
            f"room and permission to write. Received: {output}"
        ) from error


def _finished_shards(root: str, request: dict[str, Any]) -> dict[str, Shard]:
    """Returns the shards of an earlier call by their files, and notes the request in the folder."""
    manifest = read_manifest(root)
    if manifest is None:
        if os.listdir(root):
            raise UserError(
                "--output must be a new or an empty folder, or one of simsiam-pack. "
                f"Received: {root}"
            )
        write_manifest(root, Manifest(request))
        return {}
    if manifest.request != request:
        changed = [name for name in request if manifest.request.get(name) != request[name]]
        raise UserError(
            "--output holds other images or images of other flags; choose a new folder. Received: "
            f"{root}, with other {', '.join(changed)}"
        )
    found = [shard for split in (manifest.splits or {}).values() for shard in split.shards]
    for path in _entries_of(root):
        with open(path, encoding="utf-8") as file:
            found.append(shard_of(json.load(file)))
    return {shard.file: shard for shard in found if has_size(root, shard)}


def _entries_of(root: str) -> list[str]:
    """Returns the paths of the entries of finished shards that are not yet in the manifest."""
    return [os.path.join(root, name) for name in os.listdir(root) if name.endswith(_ENTRY)]


_SUFFIX = ".array_record"
_ENTRY = f"{_SUFFIX}.json"


def _pack_split(
    config: PackConfig, root: str, split: str, source: Source, finished: dict[str, Shard]
) -> list[Shard]:
    """Writes the missing shards of a split and returns all of them.

    Args:
      config: of the program.
      root: the folder to write.
      split: name of the split.
      source: its images.
      finished: the shards that exist, by their files.
    """
    parts = _parts_of(split, source.num_examples, config.images_per_shard)
    missing = [part for part in parts if part.file not in finished]
    num_images = sum(part.last - part.first for part in missing)
    if len(missing) < len(parts):
        logging.info("%s: %d of %d files exist", split, len(parts) - len(missing), len(parts))
    examples = _examples(source, missing, config)
    with Progress(num_images, f"pack {split}", "image") as progress:
        for part in missing:
            path = os.path.join(root, part.file)
            with files.written_whole(path) as staging:
                labels, outcomes = _write_shard(staging, part, source, examples, progress)
                shard = Shard(
                    part.file,
                    os.path.getsize(staging),
                    _sha256_of(staging),
                    tuple(labels),
                    outcomes.count(_REENCODED),
                    outcomes.count(_KEPT_LARGE),
                )
            entry = json.dumps(dataclasses.asdict(shard))
            files.write_text(os.path.join(root, part.file + ".json"), entry)
            finished[part.file] = shard
    return [finished[part.file] for part in parts]


def _parts_of(split: str, num_images: int, images_per_shard: int) -> list[_Part]:
    starts = range(0, num_images, images_per_shard)
    name = re.sub(r"[^\w-]", "_", split)
    return [
        _Part(
            f"{name}-{number:05}-of-{len(starts):05}{_SUFFIX}",
            first,
            min(first + images_per_shard, num_images),
        )
        for number, first in enumerate(starts)
    ]


def _write_shard(
    path: str, part: _Part, source: Source, examples: Iterator, progress: Progress
) -> tuple[list[int], list[int]]:
    """Writes the images of a shard; returns their labels and what was done to them."""
    labels, outcomes = [], []
    writer = array_record_module.ArrayRecordWriter(path, _OPTIONS)
    try:
        for _ in range(part.first, part.last):
            index, encoded, label, outcome = _next(examples, source, part)
            if not encoded:  # it could not be read among others; alone, it has a reason
                encoded = _read_alone(source, int(index))
            writer.write(encoded)
            labels.append(int(label))
            outcomes.append(int(outcome))
            progress.update(1)
    finally:
        writer.close()
    return labels, outcomes


def _next(examples: Iterator, source: Source, part: _Part) -> tuple:
    """Returns the next (index, encoded, label, outcome); names an image that cannot be read."""
    try:
        return next(examples)
    except READ_ERRORS as error:
        if source.stream is None:
            # The pipeline reads ahead, so the image may be one of a later shard.
            for index in range(part.first, source.num_examples):
                _read_alone(source, index)
        raise UserError(f"{source.name} cannot be read ({reason_of(error)})") from error


def _read_alone(source: Source, index: int) -> bytes:
    try:
        encoded, _ = source.read(tf.constant([index], tf.int64))
    except READ_ERRORS as error:
        raise UserError(
            f"An image cannot be read: {source.describe(index)} ({reason_of(error)}). Remove or "
            "replace it"
        ) from error
    return encoded[0].numpy()


def _examples(source: Source, parts: Sequence[_Part], config: PackConfig) -> Iterator:
    """Yields (index, encoded image, label, outcome) of the images of some shards, in their order.

    A stream has an order of its own, in which its shards are packed.
    """
    if not parts:
        return
    indices = np.concatenate([np.arange(part.first, part.last) for part in parts])
    if source.stream:
        is_missing = np.zeros(source.num_examples, bool)
        is_missing[indices] = True
        is_missing_tensor = tf.constant(is_missing)

        def choose(records):
            chosen = records.enumerate().filter(lambda number, _: is_missing_tensor[number])
            return chosen.map(lambda _, record: record)

        examples = source.stream(None, choose)
    else:
        batches = tf.data.Dataset.from_tensor_slices(indices).batch(source.read_at_once)
        examples = batches.map(
            lambda indices: (indices, *source.read(indices)), num_parallel_calls=tf.data.AUTOTUNE
        ).unbatch()

    def shrink_one(encoded):
        smaller, outcome = shrink(encoded, config.max_side)
        return np.array(smaller, dtype=object), np.int64(outcome)

    def with_outcome(index, encoded, label):
        if not config.max_side:
            return index, encoded, label, tf.constant(_UNCHANGED, tf.int64)
        smaller, outcome = tf.numpy_function(
            shrink_one, [encoded], (tf.string, tf.int64), stateful=False
        )
        return index, smaller, label, outcome

    examples = examples.map(with_outcome, num_parallel_calls=tf.data.AUTOTUNE)
    # The way from TensorFlow to Python takes longer than an image; a batch takes it once.
    for batch in examples.batch(_IMAGES_AT_ONCE).prefetch(2).as_numpy_iterator():
        yield from zip(*batch, strict=True)


def shrink(encoded: bytes, max_side: int) -> tuple[bytes, int]:
    """Returns an image file whose longest side is at most `max_side`, and what was done to it.

    The image becomes grey or RGB, without alpha, as it is when it is decoded. EXIF's orientation is
    kept. An image of more than 8 bits or of several frames, or one that Pillow cannot open, is
    returned as it is.

    Args:
      encoded: the bytes of the file.
      max_side: in pixels.

    Returns:
      The bytes of the file, and one of `_UNCHANGED`, `_REENCODED` and `_KEPT_LARGE`.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            scale = max_side / max(image.size)
            if scale >= 1:
                return encoded, _UNCHANGED
            is_jpeg = image.format in ("JPEG", "MPO")
            is_deep = encoded.startswith(_PNG_SIGNATURE) and encoded[_PNG_DEPTH_AT] > 8
            has_frames = not is_jpeg and getattr(image, "n_frames", 1) > 1
            if is_deep or has_frames or image.mode not in _MODES:
                return encoded, _KEPT_LARGE
            exif = Image.Exif()
            if image.getexif().get(_ORIENTATION, 1) != 1:
                exif[_ORIENTATION] = image.getexif()[_ORIENTATION]
            size = [max(1, round(side * scale)) for side in image.size]
            if is_jpeg:  # it is decoded at 1/2, 1/4 or 1/8, still at least twice as large
                image.draft(image.mode, (2 * size[0], 2 * size[1]))
            flat = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
            smaller = flat.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        options: dict[str, Any] = {"exif": exif} if len(exif) else {}
        file = io.BytesIO()
        if is_jpeg:
            smaller.save(file, "JPEG", quality=_JPEG_QUALITY, **options)
        else:
            smaller.save(file, "PNG", **options)
        return file.getvalue(), _REENCODED
    except Exception:  # a decoder raises nearly any exception at a damaged file
        return encoded, _KEPT_LARGE


def _sha256_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
