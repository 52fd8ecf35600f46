"""Writes an encoder, or a whole run, as a PyTorch state dict.

python -m simsiam_tf.interop.export_torch --encoder=DIR --output=FILE.pth
"""

from simsiam_tf import flags
from simsiam_tf.interop.settings import TorchExportConfig


def main(config: TorchExportConfig) -> None:
    with flags.heavy_imports():  # here, so that a wrong flag is reported without waiting for it
        from simsiam_tf.interop import convert

    convert.export_torch(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, TorchExportConfig)


if __name__ == "__main__":
    command()
