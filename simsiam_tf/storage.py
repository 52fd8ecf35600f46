"""Files and folders behind a URL (`gs://`, `s3://`, `file://`), by fsspec."""

import contextlib
import os
import re
from collections.abc import Iterator

import fsspec

from simsiam_tf.schema import UserError

READS_AT_ONCE = 32  # a request takes tens of milliseconds, whatever its size
_FACTS = (  # of a file, as the drivers name them; they change when the file is written again
    *("size", "etag", "ETag", "md5Hash", "generation", "mtime", "updated", "LastModified"),
    *("last_modified", "created"),
)
_LONGEST_REASON = 200  # characters; some drivers quote the whole answer of a server


def is_url(path: str) -> bool:
    """Returns whether a path is a URL, such as gs://bucket/folder."""
    return re.match(r"[a-z][a-z0-9+.-]+://", path) is not None


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a URL, and the path in it.

    Raises:
      UserError: the scheme is unknown, or its driver is not installed.
    """
    scheme = url.split("://")[0]
    try:
        options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
        return fsspec.url_to_fs(url, **options)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None)
        fix = f"pip install {missing}" if missing else reason_of(error)
        raise UserError(
            f"{scheme}:// needs a package that is not installed: {fix}. Received: {url}"
        ) from error
    except Exception as error:  # drivers read credentials here, and raise errors of their own
        raise UserError(
            f"The URL cannot be opened ({reason_of(error)}). Received: {url}"
        ) from error


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """A context in which an error of the store becomes a `UserError` that names the URL.

    A missing file remains a `FileNotFoundError`.
    """
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # each driver has its own errors
        raise UserError(
            f"The URL must exist, and you must have permission to read it ({reason_of(error)}). "
            f"Received: {url}"
        ) from error


def is_folder(url: str) -> bool:
    """Returns whether there is a folder. In an object store, a folder exists if it has files.

    Raises:
      UserError: the store cannot be read.
    """
    return _entries(url) is not None


def subfolders(url: str) -> list[str]:
    """Returns the names of the folders in a folder; none where it does not exist.

    Raises:
      UserError: the store cannot be read.
    """
    return [
        os.path.basename(entry["name"].rstrip("/"))
        for entry in _entries(url) or []
        if entry["type"] == "directory"
    ]


def _entries(url: str) -> list[dict] | None:
    """Returns what is in a folder; None if it does not exist, or is a file."""
    system, root = open_url(url)
    try:
        with reading(url):
            system.invalidate_cache()
            entries = system.ls(root, detail=True)
    except FileNotFoundError:
        return None
    if [(entry["name"], entry["type"]) for entry in entries] == [(root, "file")]:
        return None
    # Some stores have an empty file that stands for the folder itself.
    return [entry for entry in entries if entry["name"].rstrip("/") != root.rstrip("/")]


def find_files(url: str) -> dict[str, str]:
    """Returns the files below a folder, {path relative to it: text that changes with the file}.

    The dict is empty where the folder does not exist.

    Raises:
      UserError: the store cannot be read.
    """
    system, root = open_url(url)
    try:
        with reading(url):
            system.invalidate_cache()
            found = system.find(root, detail=True)
    except FileNotFoundError:
        return {}
    return {
        path[len(root) :].lstrip("/"): str([facts[key] for key in _FACTS if key in facts])
        for path, facts in found.items()
        if path.rstrip("/") != root.rstrip("/") and not path.endswith("/")
    }


def read_bytes(path: str) -> bytes:
    """Returns the content of a file, which may be a local one.

    Raises:
      OSError: it cannot be read. The text is the reason, on one line.
    """
    return read_from(*(open_url(path) if is_url(path) else (fsspec.filesystem("file"), path)))


def read_from(system: fsspec.AbstractFileSystem, path: str) -> bytes:
    """Returns the content of a file of a file system of `open_url`.

    Raises:
      OSError: it cannot be read. The text is the reason, on one line.
    """
    try:
        return system.cat_file(path)
    except Exception as error:  # each driver has its own errors
        raise OSError(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """Returns the reason that a driver gives for an error, on one line."""
    if isinstance(error, FileNotFoundError):
        return "No such file or directory"  # drivers give the path alone
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split())[:_LONGEST_REASON] or type(error).__name__
