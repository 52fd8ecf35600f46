"""Settings of `python -m simsiam_tf.data.pack`."""

import dataclasses

from simsiam_tf import schema
from simsiam_tf.schema import UserError, setting


@dataclasses.dataclass(frozen=True)
class PackConfig(schema.Config):
    """Pack"""

    dataset: str = setting("folder", "Data set to pack, as for train.py.", filled=True)
    data_dir: str = setting("", "Its images, as for train.py.")
    split: str = setting("train", "Splits to pack, separated by commas.", filled=True)
    output: str = setting("", "Folder to write.", filled=True)
    max_side: int = setting(
        0,
        "Images with a longer side, such as 512 pixels, are made smaller: JPEG stays JPEG (quality "
        "95), others become PNG. 0: none. All other images keep their bytes.",
        at_least=0,
    )
    images_per_shard: int = setting(10_000, "Number of images in a file.", at_least=1)
    verify: bool = setting(
        False, "Only check the files in --output against their checksums; nothing is packed."
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(name.strip() for name in self.split.split(","))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.splits) or len(set(self.splits)) < len(self.splits):
            raise UserError(
                "--split must be different names of splits, separated by commas. "
                f"Received: {self.split}"
            )
