"""Writes an encoder as the backbone that Detectron2's R50-C4 configurations load.

python -m simsiam_tf.interop.export_detectron2 --encoder=DIR --output=FILE.pkl

The file has the layout of MoCo's conversion: Detectron2's own tensor names, for RGB images. The
paper's detection transfer (section 5) uses MoCo's recipe, which trains and synchronises batch
normalization.
"""

from simsiam_tf import flags
from simsiam_tf.interop.settings import Detectron2ExportConfig


def main(config: Detectron2ExportConfig) -> None:
    with flags.heavy_imports():  # here, so that a wrong flag is reported without waiting for it
        from simsiam_tf.interop import convert

    convert.export_detectron2(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, Detectron2ExportConfig)


if __name__ == "__main__":
    command()
