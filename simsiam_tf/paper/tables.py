"""The tables of the paper (Chen & He, CVPR 2021) as data: their rows, numbers and findings.

A run is a training by one recipe, `paper/<scale>/<run>`. Several tables may show the same run.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from simsiam_tf.config import COLLAPSED_STD
from simsiam_tf.paper.scales import SCALES

COMPARISON = "comparison"  # our own table: all methods, and SimSiam's two ablations that collapse
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
    remark: str = ""  # the paper's words in place of a number


@dataclasses.dataclass(frozen=True)
class Claim:
    """A part of a finding: that a weighted sum over runs is above a bound.

    A difference of two runs has the weights 1 and -1. A claim that something is small has the
    weight -1 and a negative bound.
    """

    text: str
    measure: str  # a key of `outcomes.MEASURES`
    weights: dict[str, float]  # by run
    above: float = 0.0


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper, or a comparison in its text.

    The finding is reproduced when all of its claims hold.
    """

    title: str
    section: str
    finding: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]


def _spread(run: str, label: str) -> Claim:
    return Claim(f"{label}: does not collapse", "std", {run: 1}, COLLAPSED_STD)


def _collapsed(run: str, label: str) -> Claim:
    return Claim(f"{label}: collapses", "std", {run: -1}, -COLLAPSED_STD)


def _better(better: str, worse: str, text: str) -> Claim:
    return Claim(text, "probe", {better: 1, worse: -1})


def _mean_is_better(better: Sequence[str], worse: str, text: str) -> Claim:
    weights = dict.fromkeys(better, 1 / len(better))
    return Claim(text, "probe", weights | {worse: -1})


def _not_a_point_worse(run: str, other: str, text: str) -> Claim:
    return Claim(text, "probe", {run: 1, other: -1}, -1)


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


def epochs_of(scale_name: str) -> dict[str, int]:
    """Returns the epochs of each run at a scale."""
    return {run: flags["epochs"] for run, (_, flags) in build_runs(scale_name).items()}


def build_tables(scale_name: str) -> dict[str, Table]:
    """Returns the tables at a scale by name; a label says if a setting is not the paper's."""
    scale = SCALES[scale_name]

    def label(text: str, here: object, paper: object) -> str:
        return text if str(here) == str(paper) else f"{text} (here {here})"

    def batch_run(size: int) -> str:
        return "simsiam" if size == _BATCH_SIZE else f"batch_{size}"

    def dim_run(dim: int) -> str:
        return "simsiam" if dim == _DIM else f"projection_dim_{dim}"

    def run_of(method: str, budget: int) -> str:
        if (method, budget) == ("simsiam", 100):
            return batch_run(256) if scale_name == "imagenet" else "simsiam"
        return f"{method}_{budget}"

    def batch_row(size: int, number: float) -> Row:
        here = size // scale.batch_divisor
        return Row(label(f"batch {size}", here, size), batch_run(size), number)

    def dim_row(dim: int, number: float) -> Row:
        return Row(label(f"d = {dim}", dim // scale.dim_divisor, dim), dim_run(dim), number)

    def alternation_row(paper_steps: str, number: float, steps: str) -> Row:
        text = {"1": "1 step", "epoch": "1 epoch"}.get(paper_steps, f"{paper_steps} steps")
        return Row(label(text, steps, paper_steps), f"alternation_{paper_steps}", number)

    def method_row(method: str, budget: int, number: float | None) -> Row:
        epochs = scale.epochs[_BUDGETS.index(budget)]
        text = label(f"{_TITLES[method]}, {budget} epochs", epochs, budget)
        return Row(text, run_of(method, budget), number)

    simsiam = run_of("simsiam", 100)
    siblings = [method for method in _METHODS if method != "simsiam"]
    gains = {  # from the longest training, in points
        method: {run_of(method, 800): 1.0, run_of(method, 100): -1.0} for method in _METHODS
    }

    return {
        "stop_gradient": Table(
            "Stop-gradient",
            "section 4.1, Figure 2",
            "Without stop-gradient the features collapse; with it they do not.",
            (
                Row("with stop-gradient", "simsiam_decayed", 67.7),
                Row("without", "no_stop_gradient", 0.1),
            ),
            (
                _spread("simsiam_decayed", "with stop-gradient"),
                _collapsed("no_stop_gradient", "without"),
            ),
        ),
        "predictor": Table(
            "Predictor",
            "section 4.2, Table 1",
            "Without a predictor the features collapse; with a fixed random one they do not, but "
            "the loss stays high.",
            (
                Row("learned, decayed learning rate", "simsiam_decayed", 67.7),
                Row("(a) none", "predictor_none", 0.1),
                Row("(b) fixed, random", "predictor_fixed", 1.5),
                Row("(c) learned, fixed learning rate", "simsiam", 68.1),
            ),
            (
                _spread("simsiam_decayed", "learned, decayed learning rate"),
                _collapsed("predictor_none", "(a) none"),
                _spread("predictor_fixed", "(b) fixed, random"),
                Claim(
                    "(b) fixed, random: loss above half of the learned one's",
                    "loss",
                    {"predictor_fixed": 1, "simsiam_decayed": -0.5},
                ),
                _spread("simsiam", "(c) learned, fixed learning rate"),
            ),
        ),
        "batch_size": Table(
            "Batch size",
            "section 4.3, Table 2",
            "Batches from 128 to 2048 do better, on average, than 64 and than 4096.",
            tuple(batch_row(size, number) for size, number in _BATCH_SIZES.items()),
            tuple(
                _mean_is_better(
                    [batch_run(size) for size in _BATCH_SIZES if size not in (64, 4096)],
                    batch_run(other),
                    f"mean of 128 to 2048 above {other}",
                )
                for other in (64, 4096)
            ),
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
            (
                _better("bn_hidden", "bn_none", "(b) above (a)"),
                _better("bn_affine", "bn_none", "(c) above (a)"),
                _better("simsiam", "bn_none", "(c) without scale and offset above (a)"),
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
            (_better("simsiam", "similarity_cross_entropy", "cosine above cross-entropy"),),
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
            (
                _better("simsiam", "asymmetric", "symmetric above asymmetric"),
                _better("asymmetric_2x", "asymmetric", "two pairs above one"),
            ),
        ),
        "projection_dim": Table(
            "Dimension of z",
            "appendix",
            "256 dimensions do worse than 512 and more.",
            tuple(dim_row(dim, number) for dim, number in _DIMS.items()),
            tuple(
                _better(dim_run(dim), dim_run(256), f"{dim} above 256")
                for dim in _DIMS
                if dim != 256
            ),
        ),
        "alternation": Table(
            "Multi-step alternation",
            "section 5.2",
            "Targets may be frozen for 100 steps; targets frozen for an epoch do a little worse.",
            tuple(
                alternation_row(*paper, steps)
                for paper, steps in zip(_ALTERNATION.items(), scale.inner_steps, strict=True)
            ),
            (
                _not_a_point_worse(
                    "alternation_100", "alternation_1", "100 steps less than a point below 1 step"
                ),
                _mean_is_better(
                    ["alternation_1", "alternation_10", "alternation_100"],
                    "alternation_epoch",
                    "mean of 1, 10 and 100 steps above 1 epoch",
                ),
            ),
        ),
        "expectation": Table(
            "Expectation over augmentations",
            "section 5.2",
            "Without a predictor, a moving average of the targets prevents the collapse.",
            (
                Row("no predictor, moving average", "expectation_average", 55.0),
                Row("no predictor, no average", "predictor_none", 0.1),
            ),
            (
                _spread("expectation_average", "moving average"),
                _collapsed("predictor_none", "no average"),
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
            (
                *(
                    _not_a_point_worse(
                        simsiam,
                        run_of(method, 100),
                        f"100 epochs: SimSiam less than a point below {_TITLES[method]}",
                    )
                    for method in siblings
                ),
                *(
                    Claim(f"{_TITLES[method]}: 800 epochs above 100", "probe", gain)
                    for method, gain in gains.items()
                ),
                *(
                    Claim(
                        f"BYOL gains more than {_TITLES[method]}",
                        "probe",
                        gains["byol"] | {run: -weight for run, weight in gain.items()},
                    )
                    for method, gain in gains.items()
                    if method != "byol"
                ),
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
            (
                _better("simclr_100", "simclr_predictor", "without predictor above with it"),
                _better(
                    "simclr_predictor_stop_gradient",
                    "simclr_predictor",
                    "with predictor: stop-gradient above none",
                ),
            ),
        ),
        "swav_ablation": Table(
            "SwAV with a predictor, or without stop-gradient",
            "section 6.2, Table 6b",
            "Without stop-gradient SwAV does not converge; with stop-gradient it does.",
            (
                Row("SwAV", "swav_100", 66.5),
                Row("with predictor", "swav_predictor", 65.2),
                Row("without stop-gradient", "swav_no_stop_gradient", remark="diverges (NaN)"),
            ),
            (
                _spread("swav_100", "SwAV"),
                _spread("swav_predictor", "with predictor"),
                Claim(
                    "without stop-gradient: kNN falls below the random network's",
                    "knn_gain",
                    {"swav_no_stop_gradient": -1},
                ),
            ),
        ),
        COMPARISON: Table(
            "Comparison",
            "sections 4.1, 4.2 and 6.1",
            "Every method improves on the random network, and SimSiam collapses without "
            "stop-gradient or predictor.",
            (
                *(
                    Row(title, run_of(method, 100), _METHODS.get(method, (None,))[0])
                    for method, title in sorted(_TITLES.items(), key=_simsiam_first)
                ),
                Row("SimSiam without stop-gradient", "no_stop_gradient", 0.1),
                Row("SimSiam without predictor", "predictor_none", 0.1),
            ),
            (
                *(
                    Claim(f"{title}: kNN above the random network's", "knn_gain", {run: 1})
                    for method, title in sorted(_TITLES.items(), key=_simsiam_first)
                    for run in [run_of(method, 100)]
                ),
                _collapsed("no_stop_gradient", "without stop-gradient"),
                _collapsed("predictor_none", "without predictor"),
            ),
        ),
    }


def _simsiam_first(entry: tuple[str, str]) -> bool:
    return entry[0] != "simsiam"


def choose_tables(scale_name: str, name: str) -> dict[str, Table]:
    """Returns the table with a name, or for the name "all" the tables of the paper."""
    found = build_tables(scale_name)
    if name == "all":
        return {key: table for key, table in found.items() if key != COMPARISON}
    return {name: found[name]}


def runs_in(chosen: Iterable[Table]) -> list[str]:
    """Returns the runs that some tables show, each once."""
    return list(dict.fromkeys(row.run for table in chosen for row in table.rows))
