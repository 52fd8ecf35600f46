"""Packed data sets: ArrayRecord files and a manifest, written by `simsiam-pack`, read by index."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np
from absl import logging
from array_record.python import array_record_data_source

from simsiam_tf import files
from simsiam_tf.data import shards
from simsiam_tf.data.source import Source
from simsiam_tf.schema import UserError, one_line

MANIFEST_NAME = "packed.json"
_FORMAT = 1
_READ_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Shard:
    """An ArrayRecord file of a packed data set; record i is the i-th image, as it is encoded.

    Attributes:
      file: name of the file in the folder of the manifest.
      num_bytes: size of the file.
      sha256: checksum of the file.
      labels: the label of each image.
      num_reencoded: number of images that were made smaller.
      num_kept_large: number of images that should have been, and could not be.
    """

    file: str
    num_bytes: int
    sha256: str
    labels: tuple[int, ...]
    num_reencoded: int = 0
    num_kept_large: int = 0


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a packed data set.

    Attributes:
      class_names: by label; empty where the images are unlabelled.
      shards: in the order of the images.
    """

    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of a packed data set.

    Attributes:
      request: everything that determines the content of the files, as JSON.
      splits: by name; None while the files are being written.
    """

    request: dict[str, Any]
    splits: dict[str, Split] | None = None


def load_packed(data_dir: str, split: str) -> Source:
    """Returns the `Source` of a split of a packed data set.

    Args:
      data_dir: `--output` of `simsiam-pack`.
      split: name of the split, as it was packed.

    Raises:
      UserError: the folder has no complete packed data set, the split is unknown, or a file is
        missing or has another size.
    """
    if not data_dir:
        raise UserError(
            "--dataset=packed needs --data_dir, the --output of simsiam-pack. Received: none"
        )
    root = os.path.expanduser(data_dir)
    splits = complete_splits(root)
    if split not in splits:
        raise UserError(f"{data_dir} has the splits {', '.join(splits)}. Received: {split}")
    class_names, found = splits[split].class_names, splits[split].shards
    for shard in found:
        if not has_size(root, shard):
            raise UserError(
                "A file of the packed data set is missing or has another size; simsiam-pack with "
                f"the same flags writes it again. Received: {os.path.join(root, shard.file)}"
            )
    labels = np.concatenate([np.array(shard.labels, np.int32) for shard in found])
    starts = np.cumsum([0, *(len(shard.labels) for shard in found)])
    paths = [os.path.join(root, shard.file) for shard in found]
    name = f"{data_dir} ({split})"
    logging.info(
        "Packed %s: %d images in %d files, %s",
        name,
        len(labels),
        len(paths),
        f"{len(class_names)} classes" if class_names else "unlabelled",
    )
    # The numbers of records save opening every file now.
    records = array_record_data_source.ArrayRecordDataSource(
        [f"{path}[0:{len(shard.labels)}]" for path, shard in zip(paths, found, strict=True)]
    )
    facts = [[shard.sha256 for shard in found], labels.tolist(), class_names]
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def describe(index):
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return f"{paths[number]}: record {index - starts[number]}"

    return Source(
        name,
        len(labels),
        class_names,
        describe,
        # One record at a time: for several, ArrayRecordDataSource starts new threads at each call.
        read=shards.reader(records.__getitem__, labels),
        read_at_once=_READ_AT_ONCE,
        fingerprint=lambda: fingerprint,
        labels=labels,
    )


def complete_splits(root: str) -> dict[str, Split]:
    """Returns the splits of a packed data set.

    Args:
      root: the folder of the manifest.

    Raises:
      UserError: there is no manifest, or packing has not finished.
    """
    manifest = read_manifest(root)
    if manifest is None:
        raise UserError(
            f"The folder of a packed data set must contain {MANIFEST_NAME}, which simsiam-pack "
            f"writes. Received: {root}"
        )
    if manifest.splits is None:
        raise UserError(
            "A packed data set must be complete: run simsiam-pack with the same flags again, it "
            f"goes on where it stopped. Received: {root}"
        )
    return manifest.splits


def has_size(root: str, shard: Shard) -> bool:
    """Returns whether the file of a shard exists and has the size that the manifest says."""
    path = os.path.join(root, shard.file)
    return os.path.isfile(path) and os.path.getsize(path) == shard.num_bytes


def read_manifest(root: str) -> Manifest | None:
    """Returns the manifest in a folder; None if there is none.

    Raises:
      UserError: the file is not a manifest.
    """
    path = os.path.join(root, MANIFEST_NAME)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}")
        splits = content["splits"] and {
            name: Split(
                tuple(split["class_names"]), tuple(shard_of(entry) for entry in split["shards"])
            )
            for name, split in content["splits"].items()
        }
        return Manifest(content["request"], splits)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The manifest of a packed data set cannot be read ({one_line(error)}): {path}"
        ) from error


def write_manifest(root: str, manifest: Manifest) -> None:
    """Writes the manifest of a folder."""
    content = {"format": _FORMAT, **dataclasses.asdict(manifest)}
    files.write_text(os.path.join(root, MANIFEST_NAME), json.dumps(content) + "\n")


def shard_of(entry: dict[str, Any]) -> Shard:
    """Returns the shard of an entry of the manifest."""
    return Shard(**{**entry, "labels": tuple(entry["labels"])})
