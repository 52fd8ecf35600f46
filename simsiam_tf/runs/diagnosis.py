"""Finds the problems of a run by its metrics alone: rules with thresholds, each with a remedy.

The thresholds are chosen on runs that were made to fail and on healthy ones; docs/recipes.md has
the table of what the rules find in them.
"""

import dataclasses
import math
from collections.abc import Sequence

from simsiam_tf.config import COLLAPSED_STD, PretrainConfig

DOUBTFUL_STD = 2 * COLLAPSED_STD  # a std from here on is not doubtful
# Effective rank of z below which the projections hardly differ. Four well separated classes also
# give so few; then the features keep more than half of the random network's effective rank.
FEW_DIRECTIONS, FEW_OF_RANDOM = 4, 0.5
SMALL_LOSS_CHANGE = 0.1  # of the loss' size, at least 1: less is no learning
LATE_SHARE = 0.1  # of the loss' change: more in the second half of the run is still improving
CROPS_RATIO, CROPS_GAP = 1.5, 0.05  # between the alignment of z on held-out and on training images
_SETTLED = 0.2  # share of the epochs after which a run has shown whether it learns


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem that a rule found.

    Attributes:
      name: "collapse", "partial collapse", "not learning", "overfit crops" or "still improving".
      evidence: the numbers, in a sentence without its end.
      remedy: what to change, in a sentence without its end.
    """

    name: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name.capitalize()}: {self.evidence}. {self.remedy}"


def diagnose(lines: Sequence[dict], config: PretrainConfig) -> list[Finding]:
    """Returns what is wrong with a run up to its last line, the worst first.

    A rule whose metrics were not measured finds nothing. A rule about learning waits until a fifth
    of the epochs is done; `still improving` is for finished runs.

    Args:
      lines: of the run's metrics.
      config: of the run.
    """
    metrics = Metrics(lines)
    if not metrics.series("feature_std"):
        return []
    found = _collapse(metrics, config) or _partial_collapse(metrics, config)
    if found:
        return [found]
    progress = metrics.epoch / config.optimization.epochs
    if progress < _SETTLED:
        return []
    found = _not_learning(metrics, config)
    if found:
        return [found]
    others = [_overfit_crops(metrics, config)]
    if progress >= 1:
        others.append(_still_improving(metrics, config))
    return [finding for finding in others if finding]


def verdict(lines: Sequence[dict], config: PretrainConfig) -> tuple[str, str]:
    """Judges whether the features are healthy, by the rules and by their kNN.

    Args:
      lines: of the run's metrics.
      config: of the run.

    Returns:
      One of "healthy", "doubtful", "collapsed" and "unknown", and the sentences that say why and
      what to do.
    """
    metrics = Metrics(lines)
    std = metrics.latest("feature_std")
    if std is None:
        return "unknown", "No step is logged yet."
    findings = diagnose(lines, config)
    text = " ".join(f"{finding}." for finding in findings)
    if findings and findings[0].name == "collapse":
        return "collapsed", text
    if lines[-1].get("nonfinite"):
        return "doubtful", (
            "The last step was skipped and changed no weight, because its loss or gradient was "
            f"not finite. {text}"
        ).strip()
    knn = metrics.series("knn_top1")
    spread = f"The features are spread, with a std of {std:.2f}"
    if len(knn) >= 2 and knn[0][0] == 0:
        (_, before), *_, (_, now) = knn
        if now < before:
            return "doubtful", (
                f"{spread}, but the kNN top-1 of {now:.1f} % is below the random network’s, "
                f"{before:.1f} %. {text}"
            ).strip()
        spread += f", and their kNN top-1 went from {before:.1f} % to {now:.1f} %."
    else:
        spread += "; 1 is healthy, and 0 is a collapse."
    if any(finding.name != "still improving" for finding in findings):
        return "doubtful", text
    return "healthy", f"{spread} {text}".strip()


class Metrics:
    """The metrics of a run as series of (epoch, value)."""

    def __init__(self, lines: Sequence[dict]) -> None:
        """Args:
        lines: of the run's metrics.
        """
        self.lines = lines
        self.epoch = lines[-1]["epoch"] if lines else 0.0

    def series(self, name: str) -> list[tuple[float, float]]:
        """Returns the epochs and values of a metric that are finite."""
        pairs = [(line["epoch"], line[name]) for line in self.lines if name in line]
        return [pair for pair in pairs if math.isfinite(pair[1])]

    def last_epoch(self, name: str) -> list[float]:
        """Returns the values of a metric that were written in its last epoch."""
        pairs = self.series(name)
        return [value for epoch, value in pairs if epoch > pairs[-1][0] - 1]

    def latest(self, name: str) -> float | None:
        """Returns the newest value of a metric; None without one."""
        pairs = self.series(name)
        return pairs[-1][1] if pairs else None


def _collapse(metrics: Metrics, config: PretrainConfig) -> Finding | None:
    std = max(metrics.last_epoch("feature_std"))
    if std >= COLLAPSED_STD:
        return None
    evidence = (
        f"the features’ std was {std:.2f} or less throughout the last epoch; 1 is healthy, and "
        f"less than {COLLAPSED_STD} is a collapse"
    )
    return Finding("collapse", evidence, _against_collapse(config))


def _against_collapse(config: PretrainConfig) -> str:
    method = config.method
    if method.method == "simsiam" and not method.stop_gradient:
        return "Leave out --stop_gradient=false: SimSiam collapses without it (section 4.1)"
    if method.method in ("simsiam", "byol", "alternation") and method.predictor == "none":
        return "Leave out --predictor=none: the method collapses without it (Table 1)"
    if method.projection_bn == "none":
        return "Choose --projection_bn=all: normalization in the heads prevents it (Table 3)"
    return (
        f"Choose a smaller --base_learning_rate than {config.optimization.base_learning_rate:g}, "
        "or more --warmup_epochs, and look at the view pairs"
    )


def _partial_collapse(metrics: Metrics, config: PretrainConfig) -> Finding | None:
    std = max(metrics.last_epoch("feature_std"))
    z_rank, ranks = metrics.latest("z_effective_rank"), metrics.series("effective_rank")
    settled = metrics.epoch >= _SETTLED * config.optimization.epochs
    if not settled:
        return None
    if std < DOUBTFUL_STD:
        evidence = f"the features’ std was {std:.2f} or less in the last epoch; 1 is healthy"
    elif (
        z_rank is not None
        and z_rank < FEW_DIRECTIONS
        and ranks[0][0] == 0
        and ranks[-1][1] < FEW_OF_RANDOM * ranks[0][1]
    ):
        evidence = (
            f"the projections fill {z_rank:.1f} of {config.method.projection_dim} directions "
            f"(effective rank), and the features {ranks[-1][1]:.1f}, after {ranks[0][1]:.1f} in "
            f"the random network, though the std is {std:.2f}"
        )
    else:
        return None
    return Finding("partial collapse", evidence, _against_partial_collapse(config))


def _against_partial_collapse(config: PretrainConfig) -> str:
    optimization = config.optimization
    if optimization.weight_decay > 1e-3 and optimization.optimizer != "adamw":
        return f"Choose a smaller --weight_decay than {optimization.weight_decay:g}, such as 1e-4"
    return (
        f"Choose a smaller --base_learning_rate than {optimization.base_learning_rate:g}, or a "
        "larger --width or --backbone: too small a network collapses in part"
    )


def _change_of_loss(metrics: Metrics) -> tuple[float, float, float] | None:
    """Returns the loss at first, in the middle and at last; None if too few lines have one."""
    values = [value for _, value in metrics.series("loss")]
    if len(values) < 4:
        return None
    few = max(1, len(values) // 20)
    middle = len(values) // 2
    parts = values[:1], values[middle - few // 2 : middle - few // 2 + few], values[-few:]
    return tuple(sum(part) / len(part) for part in parts)  # type: ignore[return-value]


def _not_learning(metrics: Metrics, config: PretrainConfig) -> Finding | None:
    losses = _change_of_loss(metrics)
    if not losses:
        return None
    first, _, last = losses
    if first - last >= SMALL_LOSS_CHANGE * max(1.0, abs(first)):
        return None
    evidence = f"the loss is {last:.3f}, and it began at {first:.3f}"
    if config.method.predictor == "fixed":
        remedy = "Leave out --predictor=fixed: the loss does not converge with it (Table 1)"
    else:
        rate = config.optimization.base_learning_rate
        remedy = f"Choose a larger --base_learning_rate than {rate:g}"
    return Finding("not learning", evidence, remedy)


def _overfit_crops(metrics: Metrics, config: PretrainConfig) -> Finding | None:
    seen, unseen = metrics.latest("z_alignment"), metrics.latest("heldout_z_alignment")
    if seen is None or unseen is None:
        return None
    if unseen - seen < CROPS_GAP or unseen < CROPS_RATIO * seen:
        return None
    return Finding(
        "overfit crops",
        f"two views of a held-out image are {unseen / max(seen, 1e-9):.1f} times as far apart "
        f"(‖z1 − z2‖² {unseen:.2f}) as those of a training image ({seen:.2f})",
        "Train on more images, choose fewer --epochs, or stronger views (a smaller "
        f"--crop_min_area than {config.views.crop_min_area:g})",
    )


def _still_improving(metrics: Metrics, config: PretrainConfig) -> Finding | None:
    losses = _change_of_loss(metrics)
    if not losses:
        return None
    first, middle, last = losses
    share = (middle - last) / max(first - last, 1e-9)
    if share < LATE_SHARE:
        return None
    epochs = config.optimization.epochs
    return Finding(
        "still improving",
        f"the second half of the run brought {share:.0%} of the change of the loss",
        f"Go on with more --epochs, such as {2 * epochs}",
    )
