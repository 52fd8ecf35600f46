"""The tables of the paper (Chen & He, CVPR 2021) as data: their rows, numbers and findings.

A run is a training by one recipe, `paper/<scale>/<run>`. Several tables may show the same run.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Scale:
    """A stand-in for the paper's ImageNet with 100 epochs."""

    what: str
    hardware: str
    simsiam: str  # SimSiam's recipe
    suffix: str  # of the other methods' recipes, <method>_<suffix>
    num_images: int
    epochs: tuple[int, ...]  # for the paper's 100, 200, 400 and 800
    warms_up: bool  # all runs warm up for a tenth of their epochs; False: only large batches do
    batch_divisor: int  # the paper's batch sizes are divided by it
    dim_divisor: int  # the paper's dimensions of z are divided by it
    inner_steps: tuple[str, ...]  # for the paper's 1, 10, 100 and epoch


SCALES = {
    "imagenet": Scale(
        what="ImageNet, ResNet-50, as in the paper",
        hardware="8 GPUs in the paper (--strategy=auto uses all of them); we have not run it",
        simsiam="r50",
        suffix="r50",
        num_images=1_281_167,
        epochs=(100, 200, 400, 800),
        warms_up=False,
        batch_divisor=1,
        dim_divisor=1,
        inner_steps=("1", "10", "100", "epoch"),
    ),
    "cifar10": Scale(
        what="CIFAR-10, ResNet-18 with the CIFAR stem",
        hardware="designed for one GPU; we have none and have not run it to completion",
        simsiam="cifar10",
        suffix="cifar10",
        num_images=50_000,
        epochs=(200, 400, 800, 1600),
        warms_up=False,
        batch_divisor=1,
        dim_divisor=1,
        inner_steps=("1", "10", "100", "epoch"),
    ),
    "digits": Scale(
        what="the embedded digits, ResNet-18 of a quarter of the width",
        hardware="any CPU",
        simsiam="digits",
        suffix="digits",
        num_images=1_437,
        epochs=(20, 30, 40, 60),
        warms_up=True,
        batch_divisor=4,
        dim_divisor=16,
        inner_steps=("1", "2", "5", "epoch"),  # an epoch has 11 steps
    ),
}
_BUDGETS = (100, 200, 400, 800)  # the paper's epochs
_BATCH_SIZE, _LARGE_BATCH = 512, 1024  # the default, and the smallest that warms up
_BATCH_SIZES = {64: 66.1, 128: 67.3, 256: 68.1, 512: 68.1, 1024: 68.0, 2048: 67.9, 4096: 64.0}
_DIM = 2048  # the default
_DIMS = {256: 65.3, 512: 67.2, 1024: 67.5, 2048: 68.1}
_ALTERNATION = {"1": 68.1, "10": 68.7, "100": 68.9, "epoch": 67.0}
_METHODS = {  # the numbers of Table 4 after each of the budgets
    "simclr": (66.5, 68.3, 69.8, 70.4),
    "mocov2": (67.4, 69.9, 71.0, 72.2),
    "byol": (66.5, 70.6, 73.2, 74.3),
    "swav": (66.5, 69.1, 70.7, 71.8),
    "simsiam": (68.1, 70.0, 70.8, 71.3),
}
_TITLES = {
    "simclr": "SimCLR",
    "mocov2": "MoCo v2",
    "byol": "BYOL",
    "swav": "SwAV",
    "simsiam": "SimSiam",
    "supervised": "Supervised",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table."""

    label: str
    run: str
    number: float | None = None  # the paper's linear top-1 in percent
    expected: str = ""  # a key of `findings.EXPECTATIONS`; empty: none
    remark: str = ""  # the paper's words in place of a number


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper, or a comparison in its text.

    If rows have expectations, the finding is reproduced when all of them are met. Otherwise it is
    reproduced when the rows have the paper's order.
    """

    title: str
    section: str
    finding: str
    rows: tuple[Row, ...]


def recipe_of(scale_name: str, run: str) -> str:
    """Returns the name of a run's recipe."""
    return f"paper/{scale_name}/{run}"


def build_runs(scale_name: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns the runs at a scale by name: a method's recipe, and the flags that differ."""
    scale = SCALES[scale_name]

    def run(
        recipe: str = "simsiam", budget: int = _BUDGETS[0], **flags: Any
    ) -> tuple[str, dict[str, Any]]:
        epochs = scale.epochs[_BUDGETS.index(budget)]
        warmup = {"warmup_epochs": epochs // 10} if scale.warms_up else {}
        base = scale.simsiam if recipe == "simsiam" else f"{recipe}_{scale.suffix}"
        return base, {"epochs": epochs} | warmup | flags

    decayed: dict[str, Any] = {"fix_predictor_learning_rate": "false"}
    runs = {
        "simsiam": run(),
        "simsiam_decayed": run(**decayed),
        "no_stop_gradient": run(**decayed, stop_gradient="false"),
        "predictor_none": run(**decayed, predictor="none"),
        "predictor_fixed": run(**decayed, predictor="fixed"),
        "bn_none": run(projection_bn="none", prediction_bn="none"),
        "bn_hidden": run(projection_bn="hidden"),
        "bn_affine": run(projection_bn="all_affine"),
        "bn_predictor_output": run(projection_bn="all_affine", prediction_bn="all"),
        "similarity_cross_entropy": run(similarity="cross_entropy"),
        "asymmetric": run(loss_symmetry="asymmetric"),
        "asymmetric_2x": run(loss_symmetry="asymmetric_2x"),
        "expectation_average": run(method="alternation", predictor="none", eta_momentum=0.8),
    }
    warmup: dict[str, Any]
    for size in _BATCH_SIZES:
        if size != _BATCH_SIZE:
            warmup = {"warmup_epochs": scale.epochs[0] // 10} if size >= _LARGE_BATCH else {}
            runs[f"batch_{size}"] = run(batch_size=size // scale.batch_divisor, **warmup)
    for dim in _DIMS:
        if dim != _DIM:
            runs[f"projection_dim_{dim}"] = run(projection_dim=dim // scale.dim_divisor)
    for paper_steps, steps in zip(_ALTERNATION, scale.inner_steps, strict=True):
        runs[f"alternation_{paper_steps}"] = run(method="alternation", inner_steps=steps)

    for method in _METHODS:
        # In Table 4 the paper trains SimSiam at batch 256; its 100 epochs are a row of Table 2.
        is_simsiam = method == "simsiam"
        flags = {"batch_size": 256} if is_simsiam and scale_name == "imagenet" else {}
        for budget in _BUDGETS[1:] if is_simsiam else _BUDGETS:
            runs[f"{method}_{budget}"] = run(method, budget, **flags)
    runs["supervised_100"] = run("supervised")
    runs["simclr_predictor"] = run("simclr", predictor="mlp")
    runs["simclr_predictor_stop_gradient"] = run("simclr", predictor="mlp", stop_gradient="true")
    runs["swav_predictor"] = run("swav", predictor="mlp")
    runs["swav_no_stop_gradient"] = run("swav", stop_gradient="false")
    return runs


def build_tables(scale_name: str) -> dict[str, Table]:
    """Returns the tables at a scale by name; a label says if a setting is not the paper's."""
    scale = SCALES[scale_name]

    def label(text: str, here: object, paper: object) -> str:
        return text if str(here) == str(paper) else f"{text} (here {here})"

    def batch_row(size: int, number: float) -> Row:
        name = "simsiam" if size == _BATCH_SIZE else f"batch_{size}"
        return Row(label(f"batch {size}", size // scale.batch_divisor, size), name, number)

    def dim_row(dim: int, number: float) -> Row:
        name = "simsiam" if dim == _DIM else f"projection_dim_{dim}"
        return Row(label(f"d = {dim}", dim // scale.dim_divisor, dim), name, number)

    def alternation_row(paper_steps: str, number: float, steps: str) -> Row:
        text = {"1": "1 step", "epoch": "1 epoch"}.get(paper_steps, f"{paper_steps} steps")
        return Row(label(text, steps, paper_steps), f"alternation_{paper_steps}", number)

    def method_row(method: str, budget: int, number: float | None) -> Row:
        run = f"{method}_{budget}"
        if run == "simsiam_100":
            run = "batch_256" if scale_name == "imagenet" else "simsiam"
        epochs = scale.epochs[_BUDGETS.index(budget)]
        return Row(label(f"{_TITLES[method]}, {budget} epochs", epochs, budget), run, number)

    return {
        "stop_gradient": Table(
            "Stop-gradient",
            "section 4.1, Figure 2",
            "Without stop-gradient the features collapse; with it they do not.",
            (
                Row("with stop-gradient", "simsiam_decayed", 67.7, "spread"),
                Row("without", "no_stop_gradient", 0.1, "collapsed"),
            ),
        ),
        "predictor": Table(
            "Predictor",
            "section 4.2, Table 1",
            "Without a predictor the features collapse; with a fixed random one they do not, but "
            "the loss stays high.",
            (
                Row("learned, decayed learning rate", "simsiam_decayed", 67.7, "spread"),
                Row("(a) none", "predictor_none", 0.1, "collapsed"),
                Row("(b) fixed, random", "predictor_fixed", 1.5, "spread_but_high_loss"),
                Row("(c) learned, fixed learning rate", "simsiam", 68.1, "spread"),
            ),
        ),
        "batch_size": Table(
            "Batch size",
            "section 4.3, Table 2",
            "Batches from 128 to 2048 do better than 64 and 4096.",
            tuple(batch_row(size, number) for size, number in _BATCH_SIZES.items()),
        ),
        "batch_norm": Table(
            "Batch normalization in the heads",
            "section 4.4, Table 3",
            "Without batch normalization in the heads the network learns far less.",
            (
                Row("(a) none", "bn_none", 34.6),
                Row("(b) hidden layers", "bn_hidden", 67.4),
                Row("(c) and the projector's output", "bn_affine", 68.1),
                Row("the same without scale and offset", "simsiam", 68.2),
                Row("(d) and the predictor's output", "bn_predictor_output", remark="unstable"),
            ),
        ),
        "similarity": Table(
            "Similarity",
            "section 4.5",
            "Cosine does better than cross-entropy.",
            (
                Row("cosine", "simsiam", 68.1),
                Row("cross-entropy", "similarity_cross_entropy", 63.2),
            ),
        ),
        "symmetrization": Table(
            "Symmetrization",
            "section 4.6",
            "An asymmetric loss does worse, unless it has two pairs of each image.",
            (
                Row("symmetric", "simsiam", 68.1),
                Row("asymmetric", "asymmetric", 64.8),
                Row("asymmetric, two pairs", "asymmetric_2x", 67.3),
            ),
        ),
        "projection_dim": Table(
            "Dimension of z",
            "appendix",
            "256 dimensions do worse than 512 and more.",
            tuple(dim_row(dim, number) for dim, number in _DIMS.items()),
        ),
        "alternation": Table(
            "Multi-step alternation",
            "section 5.2",
            "Targets may be frozen for 100 steps; targets frozen for an epoch do a little worse.",
            tuple(
                alternation_row(*paper, steps)
                for paper, steps in zip(_ALTERNATION.items(), scale.inner_steps, strict=True)
            ),
        ),
        "expectation": Table(
            "Expectation over augmentations",
            "section 5.2",
            "Without a predictor, a moving average of the targets prevents the collapse.",
            (
                Row("no predictor, moving average", "expectation_average", 55.0, "spread"),
                Row("no predictor, no average", "predictor_none", 0.1, "collapsed"),
            ),
        ),
        "methods": Table(
            "Methods",
            "section 6.1, Table 4",
            "SimSiam is among the best after 100 epochs; all gain from longer training, BYOL most.",
            (
                *(
                    method_row(method, budget, number)
                    for method, numbers in _METHODS.items()
                    for budget, number in zip(_BUDGETS, numbers, strict=True)
                ),
                method_row("supervised", _BUDGETS[0], None),
            ),
        ),
        "simclr_ablation": Table(
            "SimCLR with a predictor",
            "section 6.2, Table 6a",
            "A predictor makes SimCLR worse, unless the gradient is stopped too.",
            (
                Row("SimCLR", "simclr_100", 66.5),
                Row("with predictor", "simclr_predictor", 64.2),
                Row("with predictor and stop-gradient", "simclr_predictor_stop_gradient", 66.0),
            ),
        ),
        "swav_ablation": Table(
            "SwAV with a predictor, or without stop-gradient",
            "section 6.2, Table 6b",
            "Without stop-gradient SwAV does not converge; with stop-gradient it does.",
            (
                Row("SwAV", "swav_100", 66.5, "spread"),
                Row("with predictor", "swav_predictor", 65.2, "spread"),
                Row(
                    "without stop-gradient",
                    "swav_no_stop_gradient",
                    None,
                    "not_converged",
                    remark="diverges (NaN)",
                ),
            ),
        ),
    }


def choose_tables(scale_name: str, name: str) -> dict[str, Table]:
    """Returns the table with a name, or all tables for the name "all"."""
    found = build_tables(scale_name)
    return found if name == "all" else {name: found[name]}
