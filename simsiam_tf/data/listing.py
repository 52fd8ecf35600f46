"""The list of the images in a folder, and the file in which the list of a large folder is kept.

The names are kept as one text of bytes, so that ten million images need little memory.
"""

import array
import collections
import dataclasses
import io
import json
import os
import time
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from simsiam_tf import files, storage
from simsiam_tf.terminal import Progress

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
    *(".avif", ".heic", ".heif", ".npy", ".npz"),
)
FILE_NAME = ".simsiam_listing.npz"  # hidden, so that it does not count as an image
_LEAST_KEPT = 100_000  # images; the list of a smaller folder is not kept
_SETTLED_SECONDS = 2  # a younger folder may change again and keep its time of change
_VERSION = 1  # of the file's content

_SUFFIXES = frozenset(IMAGE_SUFFIXES)
_OTHER, _NO_ENDING = "other", "without an ending"
_NUM_ENDINGS = 10  # endings that a message names
_MOST_ENDINGS = 1000  # endings that are counted one by one; bounds the memory
_LONGEST_ENDING = 10  # in characters; a longer text is not an ending
_IMAGES_PER_UPDATE = 1000  # of the progress bar


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images below a folder, sorted by path.

    Attributes:
      names: the names of all N images, one after the other. A name is the path relative to the
        folder, in the file system's encoding.
      lengths: `[N]` uint16, the number of bytes of each name.
      num_loose: number of images that are in no subfolder.
      subfolders: {name of a subfolder of the folder: number of images below it}, sorted by path;
        the numbers are right where `num_loose` is 0.
      left_out: {ending: number of files} of the files that are not images.
      num_repeated: number of paths that were left out because they lead to a listed folder.
      unreadable: the folders that could not be read, with the reasons.
    """

    names: bytes
    lengths: np.ndarray
    num_loose: int
    subfolders: dict[str, int]
    left_out: dict[str, int]
    num_repeated: int
    unreadable: tuple[str, ...]

    def describe_left_out(self) -> str:
        """Returns the files that are not images by ending, "12 .mp4, 3 .txt"; "" without any."""
        counts = dict(self.left_out)
        rest = counts.pop(_OTHER, 0)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rest += sum(number for _, number in ranked[_NUM_ENDINGS:])
        named = [f"{number} {ending}" for ending, number in ranked[:_NUM_ENDINGS]]
        return ", ".join([*named, f"{rest} {_OTHER}"] if rest else named)


def list_images(root: str) -> Listing:
    """Returns the list of the images below a folder, without hidden files and folders.

    Links to folders are followed. A folder to which several paths lead is listed once: under its
    path without links if it is below `root`, else under the path that is visited first in sorted
    order.

    The list of 100,000 images or more is kept in a hidden file of the folder, or, if that is
    read-only, in the user's cache folder. It is read from there while the inode number and the time
    of change of each visited folder are the same. Adding, removing or renaming a file changes the
    time of its folder. The list of a URL is not kept.

    Args:
      root: path of a folder that exists, or its URL.
    """
    if storage.is_url(root):
        return _list_files(storage.find_files(root))
    for path in _kept_in(root):
        kept = _load(path, root)
        if kept:
            logging.info("The list of the images in %s is read from %s", root, path)
            return kept
    started = time.time_ns()
    walk = _Walk(root)
    listing = walk.run()
    settled = max(walk.times, default=started) < started - _SETTLED_SECONDS * 10**9
    if len(listing.lengths) >= _LEAST_KEPT and settled and not listing.unreadable:
        _keep(root, listing, walk)
    return listing


def _list_files(found: Iterable[str]) -> Listing:
    """Returns the list of the images among files.

    Args:
      found: their paths relative to the folder, in any order.
    """
    images, left_out, num_loose = _Names(), _LeftOut(), 0
    subfolders: collections.Counter[str] = collections.Counter()
    for name in sorted(found):
        if any(is_hidden(part) for part in name.split("/")):
            continue
        ending = _ending_of(name.rpartition("/")[2])
        if ending not in _SUFFIXES:
            left_out.add(ending)
            continue
        images.append(name)
        subfolder, slash, _ = name.partition("/")
        if slash:
            subfolders[subfolder] += 1
        else:
            num_loose += 1
    return Listing(
        images.text.getvalue(),
        np.frombuffer(images.lengths, np.uint16),
        num_loose,
        dict(subfolders),
        dict(left_out.counts),
        num_repeated=0,
        unreadable=(),
    )


def split_names(text: bytes, lengths: np.ndarray) -> Iterator[str]:
    """Yields the names that stand one after the other in a text.

    Args:
      text: the names, in the file system's encoding.
      lengths: `[N]` uint16, the number of bytes of each name.
    """
    end = 0
    for length in lengths.data:  # Python integers, without a list of them
        start, end = end, end + length
        yield os.fsdecode(text[start:end])


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden."""
    return name.startswith(".")


class _Names:
    """A growing list of names, as one text of bytes."""

    def __init__(self) -> None:
        self.text = io.BytesIO()
        self.lengths = array.array("H")

    def __len__(self) -> int:
        return len(self.lengths)

    def append(self, name: str) -> None:
        encoded = os.fsencode(name)
        self.text.write(encoded)
        self.lengths.append(len(encoded))


class _LeftOut:
    """Numbers of the files that are not images, by ending."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, ending: str) -> None:
        if len(ending) > _LONGEST_ENDING or " " in ending or not ending.isprintable():
            ending = _OTHER
        ending = ending or _NO_ENDING
        known = ending in self.counts or len(self.counts) < _MOST_ENDINGS
        self.counts[ending if known else _OTHER] += 1


class _Walk:
    """One walk through a folder; keeps what tells later whether a folder has changed.

    Attributes:
      folders: names of the visited folders, each with "/" at its end; the first one is "".
      inodes: their inode numbers.
      times: their times of change in ns. Unlike the time of modification, no program can set it.
    """

    def __init__(self, root: str) -> None:
        self.folders = _Names()
        self.inodes = array.array("Q")
        self.times = array.array("q")
        self._root = root
        self._start = os.path.join(root, "")
        self._real_root = os.path.realpath(root)
        self._visited: set[int] = set()
        self._left_out = _LeftOut()
        self._num_repeated = 0

    def run(self) -> Listing:
        images, unreadable, num_loose = _Names(), [], 0
        first_images: dict[str, int] = {}  # subfolder of the root → index of its first image
        # Names still to be visited, the next one last. A folder's name ends in "/", because whole
        # paths are sorted: "a-1/b.png", "a.png", "a/b.png".
        pending = [""]
        with Progress(None, f"listing {self._root}", "image") as progress:
            while pending:
                name = pending.pop()
                if name and not name.endswith("/"):
                    num_loose += "/" not in name
                    images.append(name)
                    continue
                try:
                    found = self._visit(name, progress)
                except OSError as error:
                    unreadable.append(f"{self._start}{name} ({error.strerror})")
                    continue
                if name.count("/") == 1:
                    first_images[name[:-1]] = len(images)
                found.sort(reverse=True)
                if pending:
                    pending += found
                else:  # a copy of millions of names would double the memory
                    pending = found
        ends = [*first_images.values(), len(images)][1:]
        return Listing(
            images.text.getvalue(),
            np.frombuffer(images.lengths, np.uint16),
            num_loose,
            {name: end - first_images[name] for name, end in zip(first_images, ends, strict=True)},
            dict(self._left_out.counts),
            self._num_repeated,
            tuple(unreadable),
        )

    def _visit(self, name: str, progress: Progress) -> list[str]:
        """Returns the names of a folder's images and subfolders; nothing at its second visit."""
        path = self._start + name
        status = os.stat(path)  # before the names are read, so that a later change is noticed
        identity = status.st_dev << 64 | status.st_ino
        if identity in self._visited and status.st_ino:  # some file systems number nothing
            self._num_repeated += 1
            return []
        found = list(self._entries(path, name, progress))
        self._visited.add(identity)
        self.folders.append(name)
        self.inodes.append(status.st_ino)
        self.times.append(status.st_ctime_ns)
        return found

    def _entries(self, path: str, name: str, progress: Progress) -> Iterator[str]:
        num_images = 0
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    if entry.is_symlink() and self._is_listed_without_links(entry.path):
                        self._num_repeated += 1
                    else:
                        yield f"{name}{entry.name}/"
                    continue
                ending = _ending_of(entry.name)
                if ending not in _SUFFIXES:
                    self._left_out.add(ending)
                    continue
                yield name + entry.name
                num_images += 1
                if num_images % _IMAGES_PER_UPDATE == 0:
                    progress.update(_IMAGES_PER_UPDATE)
        progress.update(num_images % _IMAGES_PER_UPDATE)

    def _is_listed_without_links(self, link: str) -> bool:
        """Returns whether a link leads to a folder that the walk reaches without any link."""
        inside = os.path.relpath(os.path.realpath(link), self._real_root)
        # A path out of the folder starts with "..", which counts as hidden here. The folder itself
        # is ".", and the walk has visited it.
        return not any(is_hidden(part) for part in inside.split("/"))


def _ending_of(name: str) -> str:
    """Returns the ending of a file's name, in lower case; "" if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


# The file of a list. Its own time of modification is set to the time of change of the listed
# folder, which cannot be in its content: putting the file into the folder changes that time.


def _kept_in(root: str) -> Iterator[str]:
    """Yields the paths at which the list of a folder may be kept."""
    yield os.path.join(root, FILE_NAME)
    yield files.cache_path("listings", os.path.realpath(root))


def _keep(root: str, listing: Listing, walk: _Walk) -> None:
    """Keeps a list at the first path that can be written to, unless the folder has changed."""
    facts = {
        "version": _VERSION,
        "suffixes": IMAGE_SUFFIXES,
        "num_loose": listing.num_loose,
        "subfolders": listing.subfolders,
        "left_out": listing.left_out,
        "num_repeated": listing.num_repeated,
    }
    arrays: dict[str, Any] = {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "folders": np.frombuffer(walk.folders.text.getvalue(), np.uint8),
        "folder_lengths": np.frombuffer(walk.folders.lengths, np.uint16),
        "inodes": np.frombuffer(walk.inodes, np.uint64),
        "times": np.frombuffer(walk.times, np.int64),
        "names": np.frombuffer(listing.names, np.uint8),
        "lengths": listing.lengths,
    }
    for path in _kept_in(root):
        try:
            if _stamp(root) != (walk.inodes[0], walk.times[0]):
                return
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _write(path, root, arrays)
        except OSError as error:
            logging.info("The list of the images is not kept in %s (%s)", path, error)
        else:
            logging.info("The list of the images is kept in %s for the next start", path)
            return


def _write(path: str, root: str, arrays: dict[str, Any]) -> None:
    """Writes the file of a list.

    Raises:
      OSError: it cannot be written, or would not notice a change of the folder.
    """
    walked = _stamp(root)
    with files.written_whole(path, by_several=True) as staging:
        with open(staging, "wb") as file:
            opened = _stamp(root)
            np.savez(file, **arrays)
        if _stamp(root) != opened:
            raise OSError("the folder has changed")
    changed = os.stat(root).st_ctime_ns
    os.utime(path, ns=(changed, changed))
    is_inside = os.path.basename(path) == FILE_NAME
    if os.stat(path).st_mtime_ns != changed or (is_inside and walked == _stamp(root)):
        files.remove(path)
        raise OSError("the file system does not keep exact times")


def _load(path: str, root: str) -> Listing | None:
    """Returns the list in a file; None if it is missing, damaged or of another state."""
    try:
        with np.load(path) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            if facts.pop("version") != _VERSION or facts.pop("suffixes") != list(IMAGE_SUFFIXES):
                return None
            times = arrays["times"].tolist()
            times[0] = os.stat(path).st_mtime_ns
            stamps = zip(arrays["inodes"].tolist(), times, strict=True)
            for folder in split_names(arrays["folders"].tobytes(), arrays["folder_lengths"]):
                if _stamp(os.path.join(root, folder)) != next(stamps):
                    return None
            return Listing(arrays["names"].tobytes(), arrays["lengths"], **facts, unreadable=())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s is not readable (%s), so the folder is listed again", path, error)
        return None


def _stamp(folder: str) -> tuple[int, int] | None:
    """Returns the inode number and the time of change; None if the folder does not exist."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns
