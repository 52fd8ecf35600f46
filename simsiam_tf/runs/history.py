"""When, where and how a run was started: history.jsonl, a line for each start."""

import datetime
import json
import os
import pathlib
import shlex
import subprocess
import sys

import simsiam_tf
from simsiam_tf import files
from simsiam_tf.runs import run_folder

FILE_NAME = "history.jsonl"


def note_start(workdir: str, step: int, device: str, replicas: int) -> None:
    """Adds a start to the history of a run.

    Args:
      workdir: folder of the run.
      step: of the checkpoint that the run resumes from; 0: it begins.
      device: name of the accelerator or the processor.
      replicas: number of replicas over all workers.
    """
    entry = {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "device": device,
        "replicas": replicas,
        "version": _version(),
    }
    path = os.path.join(workdir, FILE_NAME)
    with files.writing_to(workdir), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read(workdir: str, damaged: list[str]) -> list[dict]:
    """Returns the starts of a run, the first one first; empty for runs of earlier versions.

    Args:
      workdir: folder of the run.
      damaged: takes a text for each line that cannot be read.
    """
    path = os.path.join(workdir, FILE_NAME)
    return run_folder.read_lines(path, ("time", "command"), damaged.append)


def _version() -> str:
    """Returns the version of this project, with the commit where it runs from a clone."""
    root = pathlib.Path(simsiam_tf.__file__).parent.parent
    if not (root / ".git").exists():
        return simsiam_tf.__version__
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a clone of another user
        return simsiam_tf.__version__
    return f"{simsiam_tf.__version__}, commit {commit}"
