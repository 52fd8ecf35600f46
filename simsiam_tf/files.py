"""Files and folders that exist under their names only once they are complete."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from simsiam_tf.schema import UserError

UNFINISHED = ".partial"  # ends the name of what is still being written


@contextlib.contextmanager
def written_whole(path: str, *, by_several: bool = False) -> Iterator[str]:
    """Yields a temporary path beside `path`; a file or folder written there replaces `path`.

    After an exception the unfinished file is removed and `path` is as it was.

    Args:
      path: of the file or folder.
      by_several: whether several processes may write it at once, each to a path of its own.
    """
    staging = f"{path}.{os.getpid()}{UNFINISHED}" if by_several else f"{path}{UNFINISHED}"
    remove(staging)
    try:
        yield staging
        if os.path.isdir(path):  # os.replace does not replace a folder that has content
            remove(path)
        os.replace(staging, path)
    finally:
        remove(staging)


def write_text(path: str, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with written_whole(path) as staging, open(staging, "w", encoding="utf-8") as file:
        file.write(text)


def remove(path: str) -> None:
    """Removes a file or folder with its content; another process may have removed it already."""
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def cache_path(kind: str, folder: str) -> str:
    """Returns the path of an .npz file in the user's cache, for a folder that is read-only.

    Args:
      kind: subfolder of the cache.
      folder: path of the folder that the file is about.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    return os.path.join(cache, "simsiam_tf", kind, f"{name}.npz")


def make_folder(path: str) -> None:
    """Makes a folder, if it is missing, and checks that files can be written into it.

    Raises:
      OSError: they cannot.
    """
    os.makedirs(path, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


def reason_of(error: OSError | tf.errors.OpError) -> str:
    """The operating system's or TensorFlow's reason for an error, on one line."""
    return getattr(error, "strerror", None) or " ".join(
        getattr(error, "message", str(error)).split()
    )


@contextlib.contextmanager
def writing_to(workdir: str) -> Iterator[None]:
    """A context in which a full, read-only or missing disk raises a `UserError`."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"--workdir cannot be written to ({reason_of(error)}). The newest checkpoint there is "
            "complete: once there is room and permission to write, run the same command again to "
            f"resume. Received: {workdir}"
        ) from error
