"""Pre-trains an encoder on unlabelled images.

    simsiam-train --recipe=digits
    simsiam-train --recipe=r18 --dataset=folder --data_dir=my_images --workdir=runs/mine

In a clone of the repository, `python train.py` is the same program. The same command again resumes
the run.
"""

import os

from simsiam_tf import flags
from simsiam_tf.config import PretrainConfig


def main(config: PretrainConfig) -> None:
    if not os.path.exists(config.system.workdir):  # a run that exists may be finished
        config.data.check_folder()
    with flags.heavy_imports():  # TensorFlow loads only now, after the flags are checked
        from simsiam_tf.training import pretrain

    pretrain.run(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, PretrainConfig)


if __name__ == "__main__":
    command()
