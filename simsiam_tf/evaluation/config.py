"""The settings of `evaluate.py`: name, default, bounds and one sentence of help of each."""

import dataclasses

from simsiam_tf.config import DataConfig, DevicesConfig, KnnConfig
from simsiam_tf.schema import Config, UserError, setting

FEATURE_FILES = (".npz", ".tfrecord")


@dataclasses.dataclass(frozen=True)
class LinearConfig(Config):
    """Linear protocol (defaults: the authors' code)"""

    batch_size: int = setting(
        4096, "Images in a batch; the whole training split where that is smaller.", at_least=1
    )
    epochs: int = setting(90, "Passes over the training split.", at_least=1)
    base_learning_rate: float = setting(
        0.1, "Rate for a batch of 256; the rate itself is base * batch / 256.", above=0
    )
    momentum: float = setting(0.9, "Momentum of SGD.", at_least=0, below=1)
    weight_decay: float = setting(0.0, "L2 penalty, added to the gradient.", at_least=0)
    lars_trust_coefficient: float = setting(
        0.001,
        "LARS: a tensor's rate is scaled by this times its norm over its gradient's.",
        above=0,
    )


@dataclasses.dataclass(frozen=True)
class CropsConfig(Config):
    """Random crops, of linear, finetune and spectrum (defaults: the authors' code)"""

    crop_min_area: float = setting(
        0.08, "Smallest area of a random crop, as a share of the image's.", above=0, at_most=1
    )
    flip_probability: float = setting(
        0.5, "Probability of a left-right flip.", at_least=0, at_most=1
    )


@dataclasses.dataclass(frozen=True)
class ProbeConfig(Config):
    """Probe"""

    probe_epochs: int = setting(
        100, "Passes over the training split's features, for all heads at once.", at_least=1
    )
    probe_batch_size: int = setting(
        256,
        "Features in a batch; the whole training split where that is smaller.",
        at_least=1,
    )
    probe_held_out: float = setting(
        0.2,
        "Share of the training split that chooses learning rate and weight decay.",
        above=0,
        at_most=0.5,
    )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Config):
    """Fine-tuning (defaults: SimCLR's semi-supervised protocol, with smaller batches)"""

    label_fraction: float = setting(
        1.0,
        "Share of the training split's images that are trained on, of each class alike, one or "
        "more of each; 0.01 and 0.1 in the field.",
        above=0,
        at_most=1,
    )
    finetune_epochs: int = setting(
        0, "Passes over these images; 0: 60 for 1 % or less of them, else 30.", at_least=0
    )
    finetune_batch_size: int = setting(
        256,
        "Images in a batch, over all replicas; all that there are where these are fewer.",
        at_least=2,
    )
    finetune_learning_rate: float = setting(
        0.05, "Rate for a batch of 256; the rate itself is base * batch / 256.", above=0
    )
    finetune_head_learning_rate: float = setting(
        0.0, "The same for the classifier; 0: the encoder's.", at_least=0
    )
    finetune_weight_decay: float = setting(
        0.0, "L2 penalty, added to the gradient of every weight.", at_least=0
    )

    @property
    def num_epochs(self):
        """What `finetune_epochs` says, or the protocol where that is 0."""
        return self.finetune_epochs or (60 if self.label_fraction <= 0.01 else 30)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Config):
    """Evaluation"""

    data: DataConfig
    knn: KnnConfig
    linear: LinearConfig
    probe: ProbeConfig
    finetune: FinetuneConfig
    crops: CropsConfig
    devices: DevicesConfig
    encoder: str = setting("", "Folder of the encoder's SavedModel.", filled=True)
    protocol: str = setting(
        "knn",
        "Evaluation protocol; spectrum and features need no labels and look at --eval_split alone.",
        choices=("knn", "probe", "linear", "finetune", "spectrum", "features"),
    )
    image_size: int = setting(
        0, "Height and width of the encoder's input in pixels; 0: as encoder.json says.", at_least=0
    )
    eval_crop_ratio: float = setting(
        0.0,
        "Share of the resized image that the central crop keeps; 0: as encoder.json says.",
        at_least=0,
        at_most=1,
    )
    feature_batch_size: int = setting(
        256, "Images that the encoder takes at once, over all replicas.", at_least=1
    )
    feature_cache: str = setting(
        "",
        "Folder that keeps extracted features for the next evaluation; empty: features, beside the "
        "encoder's folder.",
    )
    seed: int = setting(
        0, "Seed of the classifier, order and crops.", at_least=0, at_most=2**31 - 1
    )
    output: str = setting(
        "",
        "File for the result as JSON, besides the last line of stdout; of --protocol=features for "
        "the features, .npz or .tfrecord.",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.protocol == "features" and not self.output.endswith(FEATURE_FILES):
            raise UserError(
                "--protocol=features needs an --output that ends in "
                f"{' or '.join(FEATURE_FILES)}. Received: {self.output}"
            )
