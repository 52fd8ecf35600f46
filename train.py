"""Pre-trains an encoder on unlabelled images.

    python train.py --flagfile=configs/digits.cfg
    python train.py --flagfile=configs/r18.cfg --dataset=folder --data_dir=my_images \\
        --workdir=runs/mine

The same command again resumes the run.
"""

import sys

try:
    from simsiam_tf import config, flags
except ImportError as error:  # a package that is missing, or Keras with another backend
    sys.exit(f"train.py: {error}")


def main(settings):
    with flags.quiet_imports():  # TensorFlow loads only now, after the flags are checked
        from simsiam_tf.training import pretrain

    pretrain.run(settings)


if __name__ == "__main__":
    flags.run(main, config.PretrainConfig)
