"""Converts a PyTorch checkpoint to an encoder and, with --workdir, to a run that train.py resumes.

python -m simsiam_tf.interop.import_torch --checkpoint=FILE --output=DIR [--workdir=DIR]
"""

from simsiam_tf import flags
from simsiam_tf.interop.settings import ImportConfig


def main(config: ImportConfig) -> None:
    with flags.heavy_imports():  # here, so that a wrong flag is reported without waiting for it
        from simsiam_tf.interop import convert

    convert.import_torch(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, ImportConfig)


if __name__ == "__main__":
    command()
