"""Trains and evaluates the rows of the paper's tables, and reports the results beside the paper's.

    python -m simsiam_tf.paper.reproduce --table=stop_gradient --scale=digits --workdir=runs/paper

It writes report.html and report.json into the workdir. Run the same command again to resume.
"""

from simsiam_tf import flags
from simsiam_tf.paper.settings import ReproduceConfig


def main(config: ReproduceConfig) -> None:
    """Runs the rows, or prints their cost."""
    with flags.heavy_imports():  # here, so that a wrong flag is reported without waiting for it
        from simsiam_tf.paper import runner

    if config.dry_run:
        runner.print_costs(config)
    else:
        runner.run(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, ReproduceConfig)


if __name__ == "__main__":
    command()
