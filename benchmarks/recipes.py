"""Compares `--recipe=auto` with the paper's recipes on unlike data sets, in equal time.

python benchmarks/recipes.py --folder=/tmp/recipes --photos=PHOTOS --cifar10=CIFAR10 --minutes=3

Every run gets the same minutes of training, and the trials of `auto` count. So the number of epochs
differs. Network and batch are those of `auto` in every run, because the recipes' own do not fit a
computer without an accelerator; the heads, the views, the learning rate and the rest are the
recipe's. The accuracy is that of nearest neighbours where labels exist. The effective rank is that
of the health monitor: of 64 to 256 training images, so it is comparable only within a data set.

With seed 0, the machine should have no other work, because the speed of a short run decides on the
epochs; other seeds have the same epochs. Runs that are finished in the folder are not repeated.

`--cifar10` is a folder with `train/<class>/` and `test/<class>/`, `--photos` a folder of images.
Both may be missing; then their sets are.
"""

import argparse
import collections
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from simsiam_tf.runs import run_folder

RECIPES = {
    "ImageNet": [
        "--image_size=224", "--stem=imagenet", "--base_learning_rate=0.05", "--weight_decay=1e-4",
        "--projection_dim=2048", "--projection_hidden_dim=2048", "--prediction_hidden_dim=512",
    ],
    "CIFAR": [
        "--image_size=32", "--stem=cifar", "--blur_probability=0", "--eval_crop_ratio=1",
        "--base_learning_rate=0.03", "--weight_decay=5e-4", "--projection_layers=2",
        "--projection_dim=2048", "--projection_hidden_dim=2048", "--prediction_hidden_dim=512",
    ],
    "auto": ["--recipe=auto"],
}  # fmt: skip
SPEED_IMAGES = 6000  # number of images, in one to three epochs, on which the speed is measured
RARE = ["--knn_every_epochs=100000", "--health_every_epochs=100000"]
REACHED = ("loss", "feature_std", "knn_top1", "knn_top1_before_training")


# The data sets.


def make_sets(folder, cifar10, photos):
    """Returns {name: flags of the data set}."""
    sets = {"digits": ["--dataset=digits"]}
    if cifar10:
        sets["CIFAR-10"] = in_folder(cifar10)
        sets["200 images"] = in_folder(part_of(cifar10, folder / "few", images=20))
        sets["two classes"] = in_folder(part_of(cifar10, folder / "two", classes=("cat", "ship")))
    if photos:
        sets["photographs"] = in_folder(photos)
    sets["textures"] = in_folder(write(folder / "textures", texture, 4, (250, 100)))
    sets["noise"] = in_folder(write(folder / "noise", shape_in_noise, 4, (250, 100)))
    return sets


def in_folder(path):
    return ["--dataset=folder", f"--data_dir={path}"]


def part_of(cifar10, folder, images=None, classes=None):
    """Copies some classes, or the first images of each class for training."""
    if not folder.exists():
        for source in sorted(cifar10.glob("*/*")):
            if classes and source.name not in classes:
                continue
            target = folder / source.parent.name / source.name
            target.mkdir(parents=True)
            limit = images if source.parent.name == "train" else None
            for path in sorted(source.iterdir())[:limit]:
                shutil.copy(path, target)
    return folder


def write(folder, draw, num_classes, sizes):
    """Writes images that a function draws: (class, random generator) → PIL image."""
    if not folder.exists():
        for split, size in zip(("train", "test"), sizes, strict=True):
            for label in range(num_classes):
                target = folder / split / f"class{label}"
                target.mkdir(parents=True)
                for number in range(size):
                    rng = np.random.default_rng([split == "test", label, number])
                    draw(label, rng).save(target / f"{number}.png")
    return folder


def texture(label, rng):
    """Grey-brown textures of 32 pixels, alike but for the direction and regularity of the grain."""
    radii = ((1.5, 1.5), (3.0, 1.0), (1.0, 3.0), (2.2, 2.2))[label]
    noise = rng.standard_normal((64, 64))
    for axis, radius in enumerate(radii):
        kernel = np.exp(-0.5 * (np.arange(-9, 10) / radius) ** 2)
        noise = np.apply_along_axis(np.convolve, axis, noise, kernel / kernel.sum(), mode="same")
    noise = noise[16:48, 16:48]
    levels = 120 + 40 * (noise - noise.mean()) / noise.std()
    rgb = levels[..., None] * np.array([1.0, 0.93, 0.85]) + rng.normal(0, 3, (32, 32, 3))
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def shape_in_noise(label, rng):
    """A bar, a square, a ring or a cross of some 10 pixels in an image of 20, in strong noise."""
    image = np.zeros((20, 20))
    y, x = rng.integers(2, 9, 2)
    image[y : y + 9, x : x + 9] = (
        np.pad(np.ones((3, 9)), ((3, 3), (0, 0))),
        np.ones((9, 9)),
        np.pad(np.zeros((5, 5)), 2, constant_values=1),
        np.maximum(np.eye(9), np.eye(9)[::-1]),
    )[label]
    blurred = Image.fromarray((60 + 110 * image).astype(np.uint8))
    blurred = np.asarray(blurred.filter(ImageFilter.GaussianBlur(0.5)), float)
    noisy = blurred + rng.normal(0, 40, image.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert("RGB")


# The runs.


def train(workdir, flags):
    """Trains unless the run is finished; returns the entries of its summary.json."""
    if not (workdir / "summary.json").exists():
        workdir.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "train.py", *flags, f"--workdir={workdir}"]
        with open(f"{workdir}.log", "a", encoding="utf-8") as log:
            subprocess.run(command, cwd=ROOT, stderr=log, check=True)
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))


def run(folder, name, data, recipe, seed, minutes):
    """Trains with a recipe for some minutes; returns a row of the table."""
    base = folder / name.replace(" ", "_")
    flags = [*RECIPES[recipe], *data, *RARE, f"--seed={seed}"]
    if recipe != "auto":
        settings = run_folder.read_config(str(base / "auto-speed"), "run")
        flags += [
            f"--backbone={settings.encoder.backbone}",
            f"--width={settings.encoder.width}",
            f"--batch_size={settings.optimization.batch_size}",
            f"--knn_k={settings.knn.knn_k}",
        ]
    if seed == 0:
        epochs = epochs_within(minutes, base, recipe, flags)
    else:
        epochs = run_folder.read_config(str(base / f"{recipe}-0"), "run").optimization.epochs
    workdir = base / f"{recipe}-{seed}"
    summary = train(workdir, [*flags, f"--epochs={epochs}"])
    lines = run_folder.read_metrics(str(workdir))
    health = next(line for line in reversed(lines) if "effective_rank" in line)
    return {
        "set": name,
        "recipe": recipe,
        "seed": seed,
        "epochs": epochs,
        "base_learning_rate": run_folder.read_config(
            str(workdir), "run"
        ).optimization.base_learning_rate,
        "effective_rank": health["effective_rank"],
        "z_effective_rank": health["z_effective_rank"],
        "findings": [finding["name"] for finding in summary["findings"]],
        **{name: summary[name] for name in REACHED},
    }


def epochs_within(minutes, base, recipe, flags):
    """Returns the epochs that fit in some minutes, by the speed of a short run."""
    auto = base / "auto-speed"  # it also gives the network of every recipe, and the trials' time
    epochs = 3
    if recipe != "auto":
        images = json.loads((auto / "summary.json").read_text(encoding="utf-8"))["images"]
        epochs = max(1, min(3, SPEED_IMAGES // images))
    summary = train(base / f"{recipe}-speed", [*flags, f"--epochs={epochs}"])
    trials = run_folder.read_choices(str(auto))["trials"] if recipe == "auto" else []
    seconds = 60 * minutes - sum(trial["seconds"] for trial in trials)
    return max(1, int(seconds * summary["images_per_second"] / summary["images"]))


def table(rows):
    """Returns the rows as Markdown, one line for each data set and recipe, over all seeds."""
    lines = [
        "| data set | recipe | rate | epochs | kNN top-1 | random network | effective rank | std | "
        "found |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {}
    for row in rows:
        groups.setdefault((row["set"], row["recipe"]), []).append(row)
    for (name, recipe), group in groups.items():
        cells = [
            name,
            recipe,
            spread(group, "base_learning_rate", "{:g}"),
            spread(group, "epochs", "{:.0f}"),
            spread(group, "knn_top1", "{:.1f}"),
            spread(group, "knn_top1_before_training", "{:.1f}"),
            spread(group, "effective_rank", "{:.1f}"),
            spread(group, "feature_std", "{:.2f}"),
            findings_of(group),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def findings_of(group):
    """Returns the findings, each with its number of seeds unless all seeds have it."""
    counts = collections.Counter(found for row in group for found in row["findings"])
    return (
        ", ".join(
            name if count == len(group) else f"{name} ({count} of {len(group)})"
            for name, count in sorted(counts.items())
        )
        or "healthy"
    )


def spread(group, name, form):
    values = sorted(row[name] for row in group if row[name] is not None)
    if not values:
        return "–"
    low, high = form.format(values[0]), form.format(values[-1])
    return low if low == high else f"{low} to {high}"


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--cifar10", type=Path, help="labelled folder of CIFAR-10's images")
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--sets", help="names of data sets, separated by commas; all by default")
    parser.add_argument("--minutes", type=float, default=2, help="training time of each run")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    sets = make_sets(options.folder / "sets", options.cifar10, options.photos)
    if options.sets:
        sets = {name: sets[name] for name in options.sets.split(",")}
    rows = []
    for seed in range(options.seeds):
        for name, data in sets.items():
            for recipe in ("auto", *(other for other in RECIPES if other != "auto")):
                rows.append(run(options.folder, name, data, recipe, seed, options.minutes))
                print(json.dumps(rows[-1]), flush=True)
                if options.output:
                    options.output.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
