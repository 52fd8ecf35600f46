"""The settings of `evaluate.py`: name, default, bounds and one sentence of help of each."""

import dataclasses

from simsiam_tf.config import DataConfig, DevicesConfig, KnnConfig
from simsiam_tf.schema import Config, UserError, refuse_unused, setting

FEATURE_FILES = (".npz", ".tfrecord")

_LABELLED = ("knn", "probe", "linear", "finetune")
_FROZEN = ("knn", "probe", "linear", "spectrum", "features")  # they leave the encoder as it is


@dataclasses.dataclass(frozen=True)
class EvaluationDataConfig(DataConfig):
    """Data"""

    train_split: str = setting(
        "train",
        "Split that the classifier learns from, for knn the feature bank; a TFDS slice such as "
        "train[:90%] too.",
        filled=True,
        used_by=_LABELLED,
    )


@dataclasses.dataclass(frozen=True)
class LinearConfig(Config):
    """Linear protocol (defaults: the authors' code)"""

    batch_size: int = setting(
        4096,
        "Linear protocol: images in a batch; the whole training split if that is smaller.",
        at_least=1,
    )
    epochs: int = setting(90, "Linear protocol: passes over the training split.", at_least=1)
    base_learning_rate: float = setting(
        0.1,
        "Linear protocol: learning rate for a batch of 256; the learning rate of a run is base * "
        "batch / 256.",
        above=0,
    )
    momentum: float = setting(0.9, "Linear protocol: momentum of SGD.", at_least=0, below=1)
    weight_decay: float = setting(
        0.0, "Linear protocol: L2 penalty, added to the gradient.", at_least=0
    )
    lars_trust_coefficient: float = setting(
        0.001,
        "Linear protocol: LARS scales the learning rate of a tensor by this coefficient times the "
        "norm of the tensor over the norm of its gradient.",
        above=0,
    )


@dataclasses.dataclass(frozen=True)
class CropsConfig(Config):
    """Random crops of linear, finetune and spectrum (defaults: the authors' code)"""

    crop_min_area: float = setting(
        0.08, "Smallest area of a random crop, as a share of the image's area.", above=0, at_most=1
    )
    flip_probability: float = setting(
        0.5, "Probability of a left-right flip.", at_least=0, at_most=1
    )


@dataclasses.dataclass(frozen=True)
class ProbeConfig(Config):
    """Probe"""

    probe_epochs: int = setting(
        100, "Passes over the features of the training split, for all heads at once.", at_least=1
    )
    probe_batch_size: int = setting(
        256,
        "Features in a batch; the whole training split if that is smaller.",
        at_least=1,
    )
    probe_held_out: float = setting(
        0.2,
        "Share of the training split that is held out to choose learning rate and weight decay.",
        above=0,
        at_most=0.5,
    )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Config):
    """Fine-tuning (defaults: SimCLR's semi-supervised protocol, with smaller batches)"""

    label_fraction: float = setting(
        1.0,
        "Share of the training split to train on: the same share of each class, and at least one "
        "image of each. The field uses 0.01 and 0.1.",
        above=0,
        at_most=1,
    )
    finetune_epochs: int = setting(
        0,
        "Passes over the labelled images; 0: 60 if --label_fraction is 0.01 or less, else 30.",
        at_least=0,
    )
    finetune_batch_size: int = setting(
        256,
        "Images in a batch, over all replicas; all labelled images if there are fewer.",
        at_least=2,
    )
    finetune_learning_rate: float = setting(
        0.05,
        "Learning rate for a batch of 256; the learning rate of a run is this * batch / 256.",
        above=0,
    )
    finetune_head_learning_rate: float = setting(
        0.0, "Learning rate of the classifier, scaled likewise; 0: that of the encoder.", at_least=0
    )
    finetune_weight_decay: float = setting(
        0.0, "L2 penalty, added to the gradient of every weight.", at_least=0
    )

    @property
    def num_epochs(self) -> int:
        """The number of epochs: `finetune_epochs`, or the protocol's number if that is 0."""
        return self.finetune_epochs or (60 if self.label_fraction <= 0.01 else 30)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Config):
    """Evaluation"""

    data: EvaluationDataConfig = dataclasses.field(default_factory=EvaluationDataConfig)
    knn: KnnConfig = dataclasses.field(default_factory=KnnConfig, metadata={"used_by": ("knn",)})
    linear: LinearConfig = dataclasses.field(
        default_factory=LinearConfig, metadata={"used_by": ("linear",)}
    )
    probe: ProbeConfig = dataclasses.field(
        default_factory=ProbeConfig, metadata={"used_by": ("probe",)}
    )
    finetune: FinetuneConfig = dataclasses.field(
        default_factory=FinetuneConfig, metadata={"used_by": ("finetune",)}
    )
    crops: CropsConfig = dataclasses.field(
        default_factory=CropsConfig, metadata={"used_by": ("linear", "finetune", "spectrum")}
    )
    devices: DevicesConfig = dataclasses.field(default_factory=DevicesConfig)
    encoder: str = setting("", "Folder of the encoder's SavedModel.", filled=True)
    protocol: str = setting(
        "knn",
        "Evaluation protocol; spectrum and features need no labels and read only --eval_split.",
        choices=("knn", "probe", "linear", "finetune", "spectrum", "features"),
    )
    image_size: int = setting(
        0,
        "Height and width of the encoder's input in pixels; 0: the size in encoder.json.",
        at_least=0,
    )
    eval_crop_ratio: float = setting(
        0.0,
        "Share of the resized image that the central crop keeps; 0: the share in encoder.json.",
        at_least=0,
        at_most=1,
    )
    feature_batch_size: int = setting(
        256, "Images that pass through the encoder at once, over all replicas.", at_least=1
    )
    feature_cache: str = setting(
        "",
        "Folder that keeps extracted features for the next evaluation; empty: the folder features "
        "beside the encoder's folder.",
        used_by=_FROZEN,
    )
    seed: int = setting(
        0, "Seed of the classifier, order and crops.", at_least=0, at_most=2**31 - 1
    )
    output: str = setting(
        "",
        "JSON file for the result, besides the last line of stdout; empty: "
        "results/PROTOCOL-DATA-TIME.json beside the encoder of a run. With --protocol=features: "
        ".npz or .tfrecord file for the features.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unused(self, "protocol")
        if self.protocol == "features" and not self.output.endswith(FEATURE_FILES):
            raise UserError(
                "--protocol=features needs an --output that ends in "
                f"{' or '.join(FEATURE_FILES)}. Received: {self.output}"
            )
