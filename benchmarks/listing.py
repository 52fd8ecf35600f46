"""Measures how long a folder of many images takes to list, and how much memory its paths need.

    python benchmarks/listing.py --images=1000000
    python benchmarks/listing.py --images=1000000 --folders=0
    python benchmarks/listing.py --images=10000000 --invented

The program makes empty files in a temporary folder. It loads the folder twice, each time in a new
process: first by a walk, which leaves the list in a file, then from that file. The peer is
`os.walk` with a sorted list of paths that TensorFlow copies, which is how this project worked
before. Memory is the growth of the process's peak over its memory before, divided by the number of
images. With --invented, only the folders are on disk and `os.scandir` invents the names of the
files: the memory is the same, and the time lacks that of the file system.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

NAME = "ILSVRC2012_val_{:08d}.JPEG"  # as long as ImageNet's
SIDES = ("os.walk", "walk", "kept list")
SETTLE_SECONDS = 3  # the list of a younger folder is not kept


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="number of images")
    parser.add_argument("--folders", type=int, default=1000, help="class folders; 0: loose images")
    parser.add_argument("--invented", action="store_true", help="make only the folders")
    parser.add_argument("--parent", help="folder of the temporary folder; default: in memory")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="what to measure")
    parser.add_argument("--output", help="JSON file for the result")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # of a child
    parser.add_argument("--root", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        return measure(options)

    parent = options.parent or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    with tempfile.TemporaryDirectory(dir=parent) as root:
        make_files(root, options)
        time.sleep(SETTLE_SECONDS)
        rows = {side: run_child(side, root, arguments) for side in options.sides}
        found = {(row["images"], row["fingerprint"]) for row in rows.values()}
    print(
        f"{options.images} images in {options.folders} folders"
        f"{', invented' if options.invented else ''}\n\n"
        "| | seconds | bytes a path, at the peak | bytes a path, afterwards |\n|---|---|---|---|"
    )
    for side, row in rows.items():
        print(f"| {side} | {row['seconds']:.1f} | {row['peak']:.0f} | {row['after']:.0f} |")
    if options.output:
        Path(options.output).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    if len(found) > 1:
        print(f"\nThe sides differ: {found}")
        return 1
    return 0


def make_files(root, options):
    """Makes the folders, and the files unless they are invented."""
    folders = [os.path.join(root, name) for name in folder_names(options)] or [root]
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
        for name in [] if options.invented else file_names(options):
            os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_WRONLY))


def folder_names(options):
    return [f"n{number:08d}" for number in range(options.folders)]


def file_names(options):
    """Yields the names of the files of each folder."""
    for number in range(options.images // max(options.folders, 1)):
        yield NAME.format(number * 7919 % 10**8)  # not sorted, as on disk


class Entry:
    """An invented file."""

    def __init__(self, name):
        self.name = name

    def is_dir(self, **_):
        return False

    def is_symlink(self):
        return False


def invent_files(root, options):
    """Replaces `os.scandir`, so that each folder without subfolders contains the files."""
    scan = os.scandir
    parents = {root} if options.folders else set()

    def scan_or_invent(path):
        if not str(path).startswith(root) or os.path.normpath(path) in parents:
            return scan(path)
        return contextlib.nullcontext(Entry(name) for name in file_names(options))

    os.scandir = scan_or_invent


def run_child(side, root, arguments):
    command = [sys.executable, sys.argv[0], *arguments, f"--side={side}", f"--root={root}"]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def measure(options):
    """In a child: loads the folder and prints what it took as JSON."""
    import hashlib

    import tensorflow as tf

    from simsiam_tf.data import listing
    from simsiam_tf.data.folders import load_folder

    with tempfile.TemporaryDirectory() as small:
        Path(small, "a.png").touch()
        for load in (load_folder, lambda folder, _: plain_load(folder)):  # what comes once
            load(small, "train")
    if options.invented:
        invent_files(options.root, options)
    kept = os.path.join(options.root, listing.FILE_NAME)
    if options.side == "walk":
        with contextlib.suppress(FileNotFoundError):
            os.remove(kept)
    elif options.side == "kept list" and not os.path.exists(kept):
        sys.exit("The walk has kept no list: --images must be at least 100,000")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = memory("VmRSS")
    started = time.perf_counter()
    if options.side == "os.walk":
        kept_alive = plain_load(options.root)
        count, describe = len(kept_alive[0]), kept_alive[0].__getitem__
    else:
        source = load_folder(options.root, "train")
        count, describe = source.num_examples, source.describe
    seconds = time.perf_counter() - started
    peak, after = memory("VmHWM") - before, memory("VmRSS") - before
    some = hashlib.sha256("\n".join(map(describe, range(0, count, 997))).encode()).hexdigest()
    print(
        json.dumps(
            {
                "images": count,
                "seconds": seconds,
                "peak": peak / count,
                "after": after / count,
                "fingerprint": some,
                "tensorflow": tf.__version__,
            }
        )
    )
    return 0


def plain_load(root):
    """Returns the paths, their tensor and their labels, by the code before `data.listing`."""
    import numpy as np
    import tensorflow as tf

    start = os.path.join(root, "")
    found = []
    for folder, _, names in os.walk(root, followlinks=True):
        inside = os.path.join(folder, "")
        found += [inside + name for name in names if name.lower().endswith((".jpeg", ".png"))]
    paths = sorted(found)
    names = [path.removeprefix(start) for path in paths]
    label_of = {name: label for label, name in enumerate(sorted({n.split("/")[0] for n in names}))}
    labels = np.array([label_of[name.split("/", 1)[0]] for name in names], np.int32)
    return paths, tf.constant(np.array(paths, dtype=object)), tf.constant(labels), names


def memory(entry):
    """Returns an entry of /proc/self/status in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(entry))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
