"""scikit-learn's handwritten digits as a TFDS data set: embedded, the default, no download."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from sklearn import datasets


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey digits of 8x8 pixels in ten classes, as RGB.

    Every fifth is for testing: 1,437 to train on, 360 to test with.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            description=self.__doc__,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict]]:
        digits = datasets.load_digits()
        for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (index % 5 == 0) == test:
                gray = np.round(image * (255 / 16)).astype(np.uint8)
                yield index, {"image": np.repeat(gray[..., None], 3, axis=-1), "label": int(label)}
