"""A run whose `--workdir` is a URL: it works in a local folder, whose changes are uploaded.

A kill between any two requests leaves a run that resumes from its newest complete checkpoint. An
object store cannot rename a folder, so the order of the uploads decides what counts:

1. everything that a resumed run reads besides checkpoints: metrics, `images.json`, then the flags;
2. the files of the new checkpoint, its manifest last. Without a manifest there is no checkpoint;
3. `summary.json`, with which the run is finished;
4. only then, checkpoints that the run has deleted vanish there too, their manifests first.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from absl import logging

from simsiam_tf import files, storage
from simsiam_tf.config import PretrainConfig
from simsiam_tf.runs.checkpoints import MANIFEST
from simsiam_tf.runs.run_folder import CHECKPOINTS, FLAGFILE, SUMMARY
from simsiam_tf.schema import UserError

_PROBE = ".simsiam_probe"  # written and removed at the start


@contextlib.contextmanager
def local_copy(config: PretrainConfig) -> Iterator[tuple[PretrainConfig, "Mirror"]]:
    """Yields the config with a local workdir, and the `Mirror` that uploads it.

    The local workdir of a URL is a new folder of the system's temporary folder, with the files that
    are at the URL. It is removed at the end, unless its files could not be uploaded.

    Args:
      config: of the run. If its workdir is no URL, it is yielded unchanged, and the mirror does
        nothing.

    Raises:
      UserError: the URL cannot be read.
    """
    workdir = config.system.workdir
    if not storage.is_url(workdir):
        yield config, Mirror(workdir, workdir)
        return
    name = re.sub(r"[^A-Za-z0-9.]+", "-", workdir.split("://")[1].strip("/"))
    folder = tempfile.mkdtemp(prefix=f"simsiam-{name[-80:]}-")
    mirror = Mirror(workdir, folder)
    try:
        logging.info("The run of %s works in %s", workdir, folder)
        mirror.fetch()
        system = dataclasses.replace(config.system, workdir=folder)
        yield dataclasses.replace(config, system=system), mirror
    finally:
        if not mirror.has_unsaved_files:
            shutil.rmtree(folder, ignore_errors=True)


class Mirror:
    """A local folder and the URL that it is uploaded to.

    Attributes:
      workdir: as the user named it, the URL. If it is no URL, no method does anything.
      folder: the local folder; `workdir` itself if that is no URL.
      has_unsaved_files: True if the last upload did not reach its end.
    """

    def __init__(self, workdir: str, folder: str) -> None:
        self.workdir = workdir
        self.folder = folder
        self.has_unsaved_files = False
        self._is_remote = storage.is_url(workdir)
        # The files at the URL: the size and the time of the local file of the same content. None:
        # there is no such file, so that it is removed by the next upload.
        self._stored: dict[str, tuple[int, int] | None] = {}

    def fetch(self) -> None:
        """Downloads the run's files, but for checkpoints without a manifest.

        Raises:
          UserError: the URL cannot be read.
        """
        system, root = storage.open_url(self.workdir)
        found = [name for name in storage.find_files(self.workdir) if _is_safe(name)]
        complete = {os.path.dirname(name) for name in found if os.path.basename(name) == MANIFEST}
        self._stored = dict.fromkeys(found)

        def get(name):
            path = os.path.join(self.folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            system.get_file(_join(root, name), path)
            self._stored[name] = _stamp(path)

        wanted = [
            name
            for name in found
            if not name.startswith(f"{CHECKPOINTS}/") or os.path.dirname(name) in complete
        ]
        try:
            with storage.reading(self.workdir), ThreadPoolExecutor(storage.READS_AT_ONCE) as pool:
                list(pool.map(get, wanted))
        except FileNotFoundError as error:
            raise UserError(
                "The run must not change while it is fetched; start again. "
                f"Received: {self.workdir}"
            ) from error

    @contextlib.contextmanager
    def uploaded(self) -> Iterator[None]:
        """A context at whose end the run's files are uploaded. Only one worker may enter it.

        Raises:
          UserError: the URL cannot be written to, at the start or at the end.
        """
        if not self._is_remote:
            yield
            return
        self._check_writable()
        try:
            yield
        except BaseException:
            failure = self._try_to_upload()
            if failure:  # the exception of the run matters more
                logging.error("%s", self._describe_end(failure))
            raise
        failure = self._try_to_upload()
        if failure:
            raise UserError(self._describe_end(failure))

    def upload(self) -> None:
        """Uploads the changes since the last call. A failure is a warning, and tried again."""
        failure = self._try_to_upload()
        if failure:
            logging.warning(
                "The checkpoint could not be uploaded to %s (%s); the next one tries it again",
                self.workdir,
                failure,
            )

    def _try_to_upload(self) -> str | None:
        """Uploads the changes. Returns the reason of a failure."""
        if not self._is_remote:
            return None
        self.has_unsaved_files = True
        try:
            self._upload()
        except Exception as error:  # each driver has its own errors
            return storage.reason_of(error)
        self.has_unsaved_files = False
        return None

    def _upload(self) -> None:
        system, root = storage.open_url(self.workdir)
        found = self._find()
        changed = [name for name, stamp in found.items() if self._stored.get(name) != stamp]
        for name in sorted(changed, key=_order):
            system.put_file(os.path.join(self.folder, name), _join(root, name))
            self._stored[name] = found[name]
        gone = [name for name in self._stored if name not in found]
        for name in sorted(gone, key=_order, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(_join(root, name))
            del self._stored[name]
        for folder in {os.path.dirname(name) for name in gone} - {""}:
            with contextlib.suppress(OSError):  # it has files, or the store has no folders
                system.rmdir(_join(root, folder))

    def _find(self) -> dict[str, tuple[int, int]]:
        """Returns the size and the time of each local file that is complete."""
        found = {}
        for folder, subfolders, names in os.walk(self.folder):
            subfolders[:] = [name for name in subfolders if not name.endswith(files.UNFINISHED)]
            for name in names:
                if not name.endswith(files.UNFINISHED):
                    path = os.path.join(folder, name)
                    found[os.path.relpath(path, self.folder)] = _stamp(path)
        return found

    def _check_writable(self) -> None:
        system, root = storage.open_url(self.workdir)
        probe = _join(root, _PROBE)
        try:
            system.pipe_file(probe, b"simsiam_tf may write here")
            system.rm_file(probe)
        except Exception as error:  # each driver has its own errors
            raise UserError(
                "--workdir must be a URL that exists, and you must have permission to write and "
                f"delete there ({storage.reason_of(error)}). Received: {self.workdir}"
            ) from error

    def _describe_end(self, failure: str) -> str:
        return (
            f"The end of the run could not be uploaded ({failure}). Its files are kept in "
            f"{self.folder}: copy them to {self.workdir}"
        )


def _order(name: str) -> tuple[int, str]:
    """Returns the place of a file among the uploads; see the top of this module."""
    if name == SUMMARY:
        return 4, name
    if name.startswith(f"{CHECKPOINTS}/"):
        return 3 if os.path.basename(name) == MANIFEST else 2, name
    return int(name == FLAGFILE), name


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _is_safe(name: str) -> bool:
    """Returns whether a file is the run's, and in its folder."""
    return ".." not in name.split("/") and name != _PROBE


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}"
