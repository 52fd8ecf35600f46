"""Runs the rows of the paper's tables at a scale, and reports them beside the paper's numbers.

    python -m simsiam_tf.paper.reproduce --table=stop_gradient --scale=digits --workdir=runs/paper

The same command again goes on where it stopped; report.html and report.json are in the workdir.
"""

import dataclasses

from simsiam_tf import flags, schema
from simsiam_tf.paper import tables
from simsiam_tf.schema import setting

_NAMES = tuple(tables.build_tables("imagenet"))


@dataclasses.dataclass(frozen=True)
class ReproduceConfig(schema.Config):
    """Reproduction"""

    table: str = setting("stop_gradient", "Table to reproduce.", choices=(*_NAMES, "all"))
    scale: str = setting(
        "digits",
        "What stands for the paper's ImageNet with 100 epochs: imagenet, cifar10 or digits.",
        choices=tuple(tables.SCALES),
    )
    workdir: str = setting(
        "runs/paper", "Folder of the report and of the runs, <run>/seed-<n>.", filled=True
    )
    seeds: int = setting(1, "Seeds that each row is run with: 0, 1, and so on.", at_least=1)
    run_flags: str = setting(
        "",
        "More flags of train.py for every run, as this machine asks for: "
        "'--data_dir=/data --strategy=mirrored'.",
    )
    dry_run: bool = setting(False, "Print the rows and what they cost, and stop.")


def main(config):
    # TensorFlow loads only now, after the flags are checked.
    from simsiam_tf.paper import runner

    if config.dry_run:
        runner.print_costs(config)
    else:
        runner.run(config)


if __name__ == "__main__":
    flags.run(main, ReproduceConfig)
