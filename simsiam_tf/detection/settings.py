"""Settings of `python -m simsiam_tf.detection.transfer`."""

import dataclasses

from simsiam_tf import schema
from simsiam_tf.schema import UserError, setting


@dataclasses.dataclass(frozen=True)
class TransferConfig(schema.Config):
    """Detection"""

    encoder: str = setting(
        "",
        "Folder of the SavedModel of an encoder that was trained with --stem=imagenet --width=64.",
        filled=True,
    )
    dataset: str = setting(
        "voc_folder",
        "Either voc_folder, a folder in Pascal VOC's format, or TFDS's voc with a year: voc/2007.",
        filled=True,
    )
    data_dir: str = setting(
        "",
        "Folder with JPEGImages, Annotations and ImageSets/Main (voc_folder), or the data folder "
        "of TFDS. Empty: TFDS's default folder.",
    )
    train_split: str = setting(
        "trainval",
        "Split to train on: the name of a list in ImageSets/Main, or a split of TFDS. For TFDS, "
        "trainval is train+validation.",
        filled=True,
    )
    eval_split: str = setting("test", "Split to measure AP on.", filled=True)
    image_size: int = setting(
        512,
        "Height and width of the detector's input in pixels, a multiple of 32. Images are resized "
        "with their aspect ratio kept, and padded.",
        at_least=64,
    )
    batch_size: int = setting(16, "Number of images in a batch.", at_least=1)
    epochs: int = setting(24, "Number of passes over the training split.", at_least=1)
    flip_probability: float = setting(
        0.5, "Probability of a left-right flip.", at_least=0, at_most=1
    )
    learning_rate: float = setting(
        1e-4,
        "Learning rate of AdamW after the warm-up; it decays to 0 along a cosine.",
        above=0,
    )
    seed: int = setting(
        0,
        "Seed of the new weights, the order of images and the flips.",
        at_least=0,
        at_most=2**31 - 1,
    )
    workdir: str = setting("runs/detection", "New folder for the results.", filled=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % 32:
            raise UserError(f"--image_size must be a multiple of 32. Received: {self.image_size}")
