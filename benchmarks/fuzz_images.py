"""Tests that damaged images neither crash the input pipeline nor raise its memory above a bound.

python benchmarks/fuzz_images.py [--images=10000] [--seed=0] [--output=FILE]

Image files of every kind are damaged at random, in the same way for the same seed. Bits are
flipped, ends cut off, bytes inserted and deleted, sizes in headers changed, ranges zeroed, suffixes
swapped and files emptied. A child process runs the input pipeline over the files for one epoch: it
reads, decodes and substitutes images and makes views. A child that dies is a crash. Its images are
halved until the image that causes the crash is found, and --keep copies that image to a folder.

The exit status is 1 if there was a crash, or if the peak memory was more than --extra_megabytes
above the peak for sound images. The program needs requirements-dev.txt and takes ten minutes on
two cores.
"""

import argparse
import collections
import dataclasses
import io
import json
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import tifffile

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests/data")]

CHUNK = 480  # damaged images in a folder
TIMEOUT = 600  # seconds for a folder
MAX_PIXELS = 1_000_000
SHOWN_REASONS = 15
SUFFIXES = (".jpg", ".JPEG", ".png", ".bmp", ".gif", ".webp", ".tiff", ".avif", ".npy")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="number of damaged images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--output", help="JSON file for the result")
    parser.add_argument("--keep", help="folder for the images that cause a crash")
    parser.add_argument(
        "--extra_megabytes",
        type=int,
        default=500,
        help="allowed peak memory above the peak for sound images",
    )
    parser.add_argument("--feed", nargs="+", help=argparse.SUPPRESS)  # the folders of a child
    options = parser.parse_args()
    if options.feed:
        for folder in options.feed:
            print(json.dumps(feed(Path(folder))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(Path(folder), options)
    show(result)
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n")
    too_much = result["megabytes"] > result["megabytes_of_sound_images"] + options.extra_megabytes
    sys.exit(bool(result["crashes"]) or too_much)


# Functions of the child process.


def feed(folder):
    """Runs one epoch over a folder's images; returns the counts, the reasons and the memory."""
    from absl import logging

    from simsiam_tf.config import DataConfig, ViewsConfig
    from simsiam_tf.data import datasets, pipeline, views
    from simsiam_tf.data.pixels import Pixels
    from simsiam_tf.data.quarantine import READ_ERRORS, Quarantine

    logging.set_verbosity(logging.ERROR)
    data = DataConfig(on_bad_image="skip", max_bad_fraction=1.0, max_image_pixels=MAX_PIXELS)
    # Every second folder is read as grey of sixteen bits, by the decoders of deep images.
    is_deep = folder.name[-1] in "13579"
    pixels = Pixels(1, "float32", 0, 65535, (0.5,), (0.5,)) if is_deep else Pixels()
    source = datasets.load("folder", str(folder), "train")
    source = dataclasses.replace(
        source, pixels=dataclasses.replace(pixels, exif_orientation="apply")
    )
    listed = folder.with_suffix(".jsonl")
    quarantine = Quarantine(source, data, listed)
    batch_size = next(size for size in range(16, 0, -1) if source.num_examples % size == 0)
    batches = pipeline.training_batches(
        source,
        views.build_views(ViewsConfig(image_size=32), 2, source.pixels),
        batch_size=batch_size,
        seed=0,
        first_step=0,
        last_step=source.num_examples // batch_size,
        max_pixels=MAX_PIXELS,
        quarantine=quarantine,
    )
    try:
        num_views = sum(len(batch["index"]) for batch in batches)
    except READ_ERRORS:  # the folder has only one damaged image, during the search for a crash
        num_views = 0
    quarantine.check()
    lines = listed.read_text().splitlines() if listed.exists() else []
    return {
        "examples": source.num_examples,
        "views": num_views,
        "reasons": [kind_of(json.loads(line)["reason"]) for line in lines],
        "peak_megabytes": peak_megabytes(),
    }


def kind_of(reason):
    """Returns the reason of a quarantine without the image's numbers and path."""
    reason = reason.rsplit("/", 1)[-1].split("; ")[0]
    return re.sub(r"-?\d+", "N", reason)


def peak_megabytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


# The parent.


def fuzz(folder, options):
    seeds = seed_files()
    chunks = write_damaged(folder, seeds, options.images, random.Random(options.seed))
    sound = folder / "sound"
    for number in range(CHUNK):
        name, file = seeds[number % len(SOUND)]
        write(sound / f"{number:05}-{name}.png", file)
    (of_sound,), crashes = run_children([sound])
    if crashes or of_sound["reasons"]:
        raise SystemExit(f"Sound images failed: {crashes or of_sound['reasons']}")
    reports, crashes = run_children(chunks)
    reasons = collections.Counter(reason for report in reports for reason in report["reasons"])
    crashing = [find_crash(path) for path in crashes]
    if options.keep:
        for path in crashing:
            Path(options.keep).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, options.keep)
    return {
        "images": options.images,
        "seed": options.seed,
        "decoded": sum(report["examples"] - len(SOUND) for report in reports) - reasons.total(),
        "quarantined": dict(reasons.most_common()),
        "crashes": [path.name for path in crashing],
        "megabytes_of_sound_images": of_sound["peak_megabytes"],
        "megabytes_by_chunk": [report["peak_megabytes"] for report in reports],
        "megabytes": max(report["peak_megabytes"] for report in reports),
    }


SOUND = []  # the kinds of seed files that are decoded; the other kinds are rejected


def seed_files():
    """Returns [(kind, content)] of sound files; kinds that are decoded come first."""
    import image_files

    SOUND.extend(image_files.FILES)
    others = {
        "tiff_16_bit": tiff(image_files.PIXELS.astype(np.uint16) * 200),
        "tiff_zlib": tiff(image_files.PIXELS.astype(np.float32), compression="zlib"),
        "tiff_bands": tiff(np.repeat(image_files.PIXELS, 5, axis=-1), planarconfig="contig"),
        "npy": array(np.save, image_files.PIXELS),
        "npz": array(np.savez_compressed, image_files.PIXELS),
        "png_16_bit_gray": image_files.png16(image_files.PIXELS[..., :1]),
        "jpeg_turned": image_files.rotated_by_exif(),
        "webp_turned": image_files.encode(
            image_files.COLOUR, "WEBP", exif=image_files.orientation(6)
        ),
    }
    return list((image_files.FILES | others).items())


def tiff(levels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, levels, photometric="minisblack", **options)
    return file.getvalue()


def array(save, levels):
    file = io.BytesIO()
    save(file, levels)
    return file.getvalue()


def write_damaged(folder, seeds, count, rng):
    """Writes folders of damaged images, each with sound ones that can replace them."""
    chunks = []
    for number in range(count):
        if number % CHUNK == 0:
            chunks.append(folder / f"chunk-{number // CHUNK:03}")
            for name, file in seeds[: len(SOUND)]:
                write(chunks[-1] / f"sound-{name}.png", file)
        kind, file = seeds[number % len(seeds)]
        damages = rng.choices(list(DAMAGES), WEIGHTS, k=rng.choice((1, 1, 1, 2, 3)))
        for damage in damages:
            file = DAMAGES[damage](file, rng)
        if file.startswith(b"\x89PNG") and rng.random() < 0.5:
            file = with_checksums(file)  # with a wrong checksum, libpng reads no further
        suffix = rng.choice(SUFFIXES)
        write(chunks[-1] / f"{number:05}-{kind}-{'-'.join(damages)}{suffix}", file)
    return chunks


def write(path, file):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file)


def run_children(folders):
    """Returns the reports of child processes, and the folders that crashed one."""
    reports, crashes = [], []
    while len(reports) + len(crashes) < len(folders):
        todo = [str(folder) for folder in folders[len(reports) + len(crashes) :]]
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as messages:
            died = None
            try:
                subprocess.run(
                    [sys.executable, __file__, "--feed", *todo],
                    stdout=output,
                    stderr=messages,
                    timeout=TIMEOUT * len(todo),
                    check=True,
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                messages.seek(0)
                died = f"{error}\n{messages.read()[-500:]}"
            output.seek(0)
            lines = output.read().splitlines()
        reports += map(json.loads, lines)
        if died:
            print(died, file=sys.stderr)
            crashes.append(folders[len(reports) + len(crashes)])
    return reports, crashes


def find_crash(folder):
    """Returns the image that crashes a child, or the folder if no single image does."""
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith("sound-")]
    sound = [path for path in folder.iterdir() if path.name.startswith("sound-")]
    for number, half in enumerate((paths[: len(paths) // 2], paths[len(paths) // 2 :])):
        part = folder.with_name(f"{folder.name}{number}")
        for path in half + sound:
            write(part / path.name, path.read_bytes())
        if half and run_children([part])[1]:
            return half[0] if len(half) == 1 else find_crash(part)
    return folder


def show(result):
    quarantined = sum(result["quarantined"].values())
    print(f"\n| damaged images | {result['images']} |\n|---|---:|")
    print(f"| decoded | {result['decoded']} |")
    print(f"| quarantined | {quarantined} |")
    for reason, count in list(result["quarantined"].items())[:SHOWN_REASONS]:
        print(f"| reason: {reason} | {count} |")
    print(f"| crashes | {len(result['crashes'])} |")
    print(f"| peak memory, sound images | {result['megabytes_of_sound_images']} MB |")
    print(f"| peak memory, damaged images | {result['megabytes']} MB |")
    print(f"| peak memory, first {CHUNK} damaged images | {result['megabytes_by_chunk'][0]} MB |")
    for name in result["crashes"]:
        print(f"Crash: {name}")


# Functions that damage a file: (content, random numbers) → content.


def flip_bits(file, rng):
    damaged = bytearray(file)
    for _ in range(rng.choice((1, 3, 10, 100)) if file else 0):
        damaged[rng.randrange(len(file))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(file, rng):
    return file[: rng.randrange(len(file) + 1)]


def insert_bytes(file, rng):
    at = rng.randrange(len(file) + 1)
    return file[:at] + rng.randbytes(rng.choice((1, 4, 64))) + file[at:]


def delete_bytes(file, rng):
    at = rng.randrange(len(file) + 1)
    return file[:at] + file[at + rng.choice((1, 4, 64)) :]


def zero_range(file, rng):
    first, last = sorted(rng.randrange(len(file) + 1) for _ in range(2))
    return file[:first] + bytes(last - first) + file[last:]


def change_size(file, rng):
    """Overwrites width and height with two numbers, which are often large."""
    limit = rng.choice((4, 1000, 2**15, 2**16 - 1))
    sizes = [rng.randrange(limit + 1) for _ in range(2)]
    headers = {b"\xff\xd8": (jpeg_size_at(file), ">HH"), b"\x89P": (16, ">II"), b"BM": (18, "<ii")}
    at, layout = headers.get(file[:2], (6, "<HH"))
    if layout[1] in "Ii" and rng.random() < 0.3:
        sizes = [rng.randrange(2**31) * rng.choice((1, -1)) for _ in sizes]
        layout = layout.replace("I", "i")
    numbers = struct.pack(layout, *sizes)
    return file[:at] + numbers + file[at + len(numbers) :]


def jpeg_size_at(file):
    """Returns the offset of height and width in the header of a JPEG frame."""
    return max(file.find(b"\xff\xc0"), file.find(b"\xff\xc2"), 0) + 5


def empty(file, rng):
    del rng
    return file[:0]


def leave(file, rng):
    """Returns the content unchanged, so that at most the suffix is wrong."""
    del rng
    return file


DAMAGES = {
    function.__name__: function
    for function in (
        flip_bits,
        truncate,
        insert_bytes,
        delete_bytes,
        zero_range,
        change_size,
        empty,
        leave,
    )
}
WEIGHTS = [1 if name in ("empty", "leave") else 5 for name in DAMAGES]


def with_checksums(file):
    """Returns a PNG with correct checksums of all chunks up to the first damaged length."""
    fixed, at = bytearray(file), 8
    while at + 12 <= len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(file):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(file[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


if __name__ == "__main__":
    main()
