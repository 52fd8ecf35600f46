"""Turns a PyTorch checkpoint into an encoder, and into a run to go on with.

python -m simsiam_tf.interop.import_torch --checkpoint=FILE --output=DIR [--workdir=DIR]
"""

from simsiam_tf import flags
from simsiam_tf.interop.settings import ImportConfig


def main(config):
    # TensorFlow loads only now, after the flags are checked.
    from simsiam_tf.interop import convert

    convert.import_torch(config)


if __name__ == "__main__":
    flags.run(main, ImportConfig)
