"""Evaluates an exported encoder on a data set; the last line of stdout is the result as JSON.

    simsiam-evaluate --encoder=runs/mine/encoder --protocol=linear --dataset=cifar10

In a clone of the repository, `python evaluate.py` is the same program.
"""

from simsiam_tf import flags
from simsiam_tf.evaluation.config import EvaluationConfig


def main(config: EvaluationConfig) -> None:
    config.data.check_folder()
    with flags.heavy_imports():  # TensorFlow loads only now, after the flags are checked
        from simsiam_tf.evaluation import run

    run.run(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, EvaluationConfig)


if __name__ == "__main__":
    command()
