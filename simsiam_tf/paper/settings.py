"""Settings of `python -m simsiam_tf.paper.reproduce`."""

import dataclasses

from simsiam_tf import schema
from simsiam_tf.paper import tables
from simsiam_tf.paper.scales import SCALES
from simsiam_tf.schema import setting

_NAMES = tuple(tables.build_tables("imagenet"))


@dataclasses.dataclass(frozen=True)
class ReproduceConfig(schema.Config):
    """Reproduction"""

    table: str = setting("stop_gradient", "Table to reproduce.", choices=(*_NAMES, "all"))
    scale: str = setting(
        "digits",
        "Stand-in for the paper's ImageNet with 100 epochs: imagenet, cifar10, cifar10_small or "
        "digits.",
        choices=tuple(SCALES),
    )
    workdir: str = setting(
        "runs/paper",
        "Folder of the report and of the runs, which are in <run>/seed-<n>.",
        filled=True,
    )
    seeds: int = setting(
        1,
        "Largest number of seeds for each row: 0, 1, and so on. A finding that fewer seeds decide "
        "(3, 6, 12, ...) needs no more.",
        at_least=1,
    )
    jobs: int = setting(
        1, "Number of runs at a time. They share the GPUs, or without any the cores.", at_least=1
    )
    run_flags: str = setting(
        "",
        "Flags of train.py that this machine needs in every run, such as "
        "'--data_dir=/data --strategy=mirrored'.",
    )
    dry_run: bool = setting(False, "Print the runs and their cost, and stop.")
