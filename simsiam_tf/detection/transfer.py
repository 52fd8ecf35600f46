"""Trains KerasHub's RetinaNet on Pascal VOC from an exported encoder and measures its AP.

    python -m simsiam_tf.detection.transfer --encoder=runs/r50/encoder --dataset=voc_folder --data_dir=VOCdevkit/VOC2007 --workdir=runs/detection

The program writes results.json, detector.keras and detections.png to the workdir.
"""  # noqa: E501 (a command is one line)

import importlib

from simsiam_tf import flags
from simsiam_tf.detection.settings import TransferConfig
from simsiam_tf.schema import UserError


def main(config: TransferConfig) -> None:
    # TensorFlow and KerasHub are imported here, so that a wrong flag or a missing package is
    # reported without waiting for them.
    with flags.heavy_imports():
        import simsiam_tf  # noqa: F401 (chooses the backend before Keras loads)

        for module in ("keras_hub", "pycocotools.coco"):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UserError(
                    "Detection needs the packages KerasHub and pycocotools: pip install -r "
                    f"requirements-detection.txt, or simsiam-tf[detection]. Received: {error}"
                ) from error
        from simsiam_tf.detection import run

    run.run(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, TransferConfig)


if __name__ == "__main__":
    command()
