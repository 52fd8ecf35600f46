"""Tests the rules of `runs.diagnosis` on runs that are made to fail, and on healthy ones.

python benchmarks/diagnosis.py --folder=/tmp/diagnosis

Each run trains on the embedded digits, with flags that should give the finding that stands beside
it. The program prints what the rules found in each run, and a confusion table: a row for each
finding that was expected, a column for each that was found. `--unseen` takes the runs that no
threshold was chosen with. A run that is finished in the folder is not trained again, so that the
rules can be changed without training. On two cores the runs take about an hour.
"""

import argparse
import collections
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from simsiam_tf.runs import diagnosis, run_folder

# Expected finding, recipe and flags of each run. The expectation was written before the run, and
# the thresholds were chosen with these runs in view.
FEW = "--train_split=train[:64] --batch_size=32 --warmup_epochs=0 --health_every_epochs=10"
RUNS = {
    "digits, seed 0": ("healthy", "digits", ""),
    "digits, seed 1": ("healthy", "digits", "--seed=1"),
    "digits, 80 epochs": ("healthy", "digits", "--epochs=80"),
    "BYOL": ("healthy", "byol_digits", ""),
    "MoCo v2": ("healthy", "mocov2_digits", ""),
    "SimCLR": ("healthy", "simclr_digits", ""),
    "SwAV": ("healthy", "swav_digits", ""),
    "supervised": ("healthy", "supervised_digits", ""),
    "without stop-gradient": ("collapse", "digits", "--stop_gradient=false --epochs=20"),
    "without predictor": ("collapse", "digits", "--predictor=none --epochs=20"),
    "heads without normalization": (
        "collapse",
        "digits",
        "--projection_bn=none --prediction_bn=none --epochs=20",
    ),
    "narrow network": ("partial collapse", "digits", "--width=2 --epochs=20"),
    "weight decay 0.01": ("partial collapse", "digits", "--weight_decay=0.01 --epochs=20"),
    "weight decay 0.003": ("partial collapse", "digits", "--weight_decay=0.003 --epochs=20"),
    "ten times the rate": ("partial collapse", "digits", "--base_learning_rate=10 --epochs=20"),
    "constant predictor rate off": (
        "partial collapse",
        "digits",
        "--fix_predictor_learning_rate=false --base_learning_rate=4 --epochs=20",
    ),
    "rate 1e-6": ("not learning", "digits", "--base_learning_rate=1e-6 --epochs=10"),
    "rate 1e-5, SimCLR": ("not learning", "simclr_digits", "--base_learning_rate=1e-5 --epochs=10"),
    "fixed predictor": ("not learning", "digits", "--predictor=fixed --epochs=20"),
    "5 epochs": ("still improving", "digits", "--epochs=5 --warmup_epochs=1"),
    "10 epochs": ("still improving", "digits", "--epochs=10 --warmup_epochs=1"),
    "rate 0.02": ("still improving", "digits", "--base_learning_rate=0.02 --epochs=20"),
    "64 images": ("overfit crops", "digits", f"{FEW} --epochs=400"),
    "64 images, SimCLR": ("overfit crops", "simclr_digits", f"{FEW} --epochs=400"),
    "64 images, weak views": (
        "overfit crops",
        "digits",
        f"{FEW} --epochs=200 --crop_min_area=0.9 --jitter_probability=0",
    ),
}

# Runs that were added after the thresholds were chosen.
UNSEEN = {
    "digits, seed 2": ("healthy", "digits", "--seed=2"),
    "MoCo v2, 80 epochs": ("healthy", "mocov2_digits", "--epochs=80"),
    "SwAV, 80 epochs": ("healthy", "swav_digits", "--epochs=80"),
    "without stop-gradient, seed 1": (
        "collapse",
        "digits",
        "--stop_gradient=false --epochs=20 --seed=1",
    ),
    "weight decay 0.01, seed 1": (
        "partial collapse",
        "digits",
        "--weight_decay=0.01 --epochs=20 --seed=1",
    ),
    "weight decay 0.02": ("partial collapse", "digits", "--weight_decay=0.02 --epochs=20"),
    "30 times the rate": ("partial collapse", "digits", "--base_learning_rate=30 --epochs=20"),
    "rate 1e-6, seed 1": (
        "not learning",
        "digits",
        "--base_learning_rate=1e-6 --epochs=10 --seed=1",
    ),
    "7 epochs, seed 1": ("still improving", "digits", "--epochs=7 --warmup_epochs=1 --seed=1"),
    "48 images, seed 1": (
        "overfit crops",
        "digits",
        "--train_split=train[:48] --batch_size=16 --warmup_epochs=0 --health_every_epochs=10 "
        "--epochs=200 --seed=1",
    ),
}


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--unseen", action="store_true", help="only the runs of UNSEEN")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    counts = collections.Counter()
    print("| run | expected | found | kNN top-1 | random network |\n|---|---|---|---|---|")
    for name, (expected, recipe, flags) in (UNSEEN if options.unseen else RUNS).items():
        workdir = options.folder / name.replace(" ", "_").replace(",", "")
        train(workdir, recipe, flags)
        found, knn = judge(workdir)
        print(f"| {name} | {expected} | {found} | {knn[-1]:.1f} | {knn[0]:.1f} |", flush=True)
        counts[expected, found] += 1
    print(confusion_table(counts))
    return 0


def train(workdir, recipe, flags):
    """Trains unless the run is finished."""
    if (workdir / "summary.json").exists():
        return
    command = [sys.executable, "train.py", f"--recipe={recipe}", "--knn_every_epochs=10"]
    with open(f"{workdir}.log", "a", encoding="utf-8") as log:
        subprocess.run(
            [*command, *flags.split(), f"--workdir={workdir}"], cwd=ROOT, stderr=log, check=True
        )


def judge(workdir):
    """Returns the name of the worst finding, or "healthy", and the kNN top-1 over the run."""
    lines = run_folder.read_metrics(str(workdir))
    findings = diagnosis.diagnose(lines, run_folder.read_config(str(workdir), "run"))
    knn = [line["knn_top1"] for line in lines if "knn_top1" in line]
    return (findings[0].name if findings else "healthy"), knn


def confusion_table(counts):
    """Returns the numbers of runs as Markdown: a row for each expected finding."""
    names = list(dict.fromkeys(expected for expected, _, _ in RUNS.values()))
    lines = [f"| expected | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for expected in names:
        cells = (str(counts[expected, found] or "") for found in names)
        lines.append(f"| {expected} | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
