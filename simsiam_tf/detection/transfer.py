"""Trains KerasHub's RetinaNet on Pascal VOC from an exported encoder, and measures its AP.

    python -m simsiam_tf.detection.transfer --encoder=runs/r50/encoder --dataset=voc_folder --data_dir=VOCdevkit/VOC2007 --workdir=runs/detection

results.json, detector.keras and detections.png are in the workdir afterwards.
"""  # noqa: E501 (a command is one line)

import dataclasses
import importlib

from simsiam_tf import flags, schema
from simsiam_tf.schema import UserError, setting


@dataclasses.dataclass(frozen=True)
class TransferConfig(schema.Config):
    """Detection"""

    encoder: str = setting(
        "", "Folder of the encoder's SavedModel, with --stem=imagenet and --width=64.", filled=True
    )
    dataset: str = setting(
        "voc_folder",
        "voc_folder (a folder in Pascal VOC's format), or TFDS's voc, with its year: voc/2007.",
        filled=True,
    )
    data_dir: str = setting(
        "",
        "Folder with JPEGImages, Annotations and ImageSets/Main (voc_folder), or where TFDS keeps "
        "its data sets; empty: TFDS's own default.",
    )
    train_split: str = setting(
        "trainval",
        "Split to train on: a list in ImageSets/Main; of TFDS trainval is train+validation.",
        filled=True,
    )
    eval_split: str = setting("test", "Split to measure AP on.", filled=True)
    image_size: int = setting(
        512,
        "Height and width of the detector's input in pixels, a multiple of 32; images are resized "
        "with their shape kept and padded.",
        at_least=64,
    )
    batch_size: int = setting(16, "Images in a batch.", at_least=1)
    epochs: int = setting(24, "Passes over the training split.", at_least=1)
    flip_probability: float = setting(
        0.5, "Probability of a left-right flip.", at_least=0, at_most=1
    )
    learning_rate: float = setting(
        1e-4, "Rate of AdamW after a warm-up; it falls to 0 along a cosine.", above=0
    )
    seed: int = setting(
        0, "Seed of the new weights, order and flips.", at_least=0, at_most=2**31 - 1
    )
    workdir: str = setting("runs/detection", "Folder of the results; a new one.", filled=True)

    def __post_init__(self):
        super().__post_init__()
        if self.image_size % 32:
            raise UserError(f"--image_size must be a multiple of 32. Received: {self.image_size}")


def main(config):
    # TensorFlow loads only now, after the flags are checked, and KerasHub after it is found.
    import simsiam_tf  # noqa: F401 (chooses the backend before Keras loads)

    for module in ("keras_hub", "pycocotools.coco"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                "Detection needs KerasHub and pycocotools: pip install -r "
                f"requirements-detection.txt. Received: {error}"
            ) from error
    from simsiam_tf.detection import run

    run.run(config)


if __name__ == "__main__":
    flags.run(main, TransferConfig)
