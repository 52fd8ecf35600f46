"""Writes an encoder as the backbone that Detectron2's R50-C4 configurations load.

python -m simsiam_tf.interop.export_detectron2 --encoder=DIR --output=FILE.pkl

The layout is that of MoCo's conversion, whose recipe the paper's detection transfer is (section 5):
Detectron2's own names, RGB images, batch normalization that is trained and synchronised.
"""

from simsiam_tf import flags
from simsiam_tf.interop.settings import Detectron2ExportConfig


def main(config):
    # TensorFlow loads only now, after the flags are checked.
    from simsiam_tf.interop import convert

    convert.export_detectron2(config)


if __name__ == "__main__":
    flags.run(main, Detectron2ExportConfig)
