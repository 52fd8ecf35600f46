"""Evaluates an exported encoder on a data set; the last line of stdout is the result as JSON.

python evaluate.py --encoder=runs/mine/encoder --protocol=linear --dataset=cifar10
"""

import sys

try:
    from simsiam_tf import flags
    from simsiam_tf.evaluation.config import EvaluationConfig
except ImportError as error:  # a package that is missing, or Keras with another backend
    sys.exit(f"evaluate.py: {error}")


def main(settings: EvaluationConfig) -> None:
    with flags.quiet_imports():  # TensorFlow loads only now, after the flags are checked
        from simsiam_tf.evaluation import run

    run.run(settings)


if __name__ == "__main__":
    flags.run(main, EvaluationConfig)
