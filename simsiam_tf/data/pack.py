"""Packs the images of a data set into a few large files that are read fast in any order.

    python -m simsiam_tf.data.pack --data_dir=my_images --split=train,test --output=packed
    python -m simsiam_tf.data.pack --output=packed --verify

Train on the result with --dataset=packed --data_dir=packed. The same command again goes on where
it was stopped.
"""

from simsiam_tf import flags
from simsiam_tf.data.pack_settings import PackConfig


def main(config: PackConfig) -> None:
    """Packs a data set, or verifies a packed one, and prints a line about it."""
    with flags.heavy_imports():  # TensorFlow loads only now, after the flags are checked
        from simsiam_tf.data import packing

    print(packing.verify(config.output) if config.verify else packing.pack(config))


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, PackConfig)


if __name__ == "__main__":
    command()
