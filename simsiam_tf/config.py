"""The settings of `train.py`, each with its default, its bounds and its help.

Settings that only evaluation has are in `evaluation/config.py`.
"""

import dataclasses
import enum
import math
import os
from typing import ClassVar

from simsiam_tf import network_names
from simsiam_tf.schema import SWITCH, Config, UserError, refuse_unused, setting

# ImageNet's statistics of RGB in [0, 1]. Every recipe of the reference normalises by them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COLLAPSED_STD = 0.3  # features with a `feature_std` below this count as collapsed


class Purpose(enum.IntEnum):
    """The use of a random number. It ends every seed, so that no two uses share draws."""

    ORDER = 1
    VIEWS = 2
    SUBSET = 3
    WEIGHTS = 4
    SUBSTITUTE = 5
    HELD_OUT = 6
    TURNS = 7


def _check_count(name, value, word):
    """Rejects a setting that is neither a positive integer nor `word`."""
    if value != word and not (value.isdecimal() and int(value)):
        raise UserError(f"--{name} must be a number above 0, or {word}. Received: {value}")


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Data"""

    dataset: str = setting(
        "digits",
        "Data set: digits (embedded); your own images as folder, list, tar, parquet or packed (of "
        "simsiam-pack); or a TFDS name with optional /config.",
        filled=True,
    )
    data_dir: str = setting(
        "",
        "Folder, list or shards ('shards/{000..099}.tar') of your own images, or where TFDS keeps "
        "its data sets; empty: TFDS's own default.",
        defines_run=False,
    )
    train_split: str = setting(
        "train", "Split to train on; TFDS slices such as train[:90%] are accepted.", filled=True
    )
    eval_split: str = setting("test", "Split to evaluate on.", filled=True, defines_run=False)
    on_bad_image: str = setting(
        "error",
        "Reaction to an image that cannot be read: error (stop and name it) or skip (replace it by "
        "another image and list it in quarantine.jsonl).",
        choices=("error", "skip"),
        defines_run=False,
    )
    max_bad_fraction: float = setting(
        0.05,
        "Largest share of unreadable images; above it, --on_bad_image=skip stops as well.",
        at_least=0,
        at_most=1,
        defines_run=False,
    )
    max_image_pixels: int = setting(
        120_000_000,
        "Largest number of pixels of an image. Larger images count as unreadable; their header is "
        "checked before memory is allocated.",
        at_least=1,
        defines_run=False,
    )

    def check_folder(self) -> None:
        """Checks that a folder of own images exists; programs call it before TensorFlow loads.

        Raises:
          UserError: it does not.
        """
        if self.dataset == "folder" and "://" not in self.data_dir:
            if not self.data_dir:
                raise UserError(
                    "--dataset=folder needs --data_dir, the folder of images. Received: none"
                )
            if not os.path.isdir(os.path.expanduser(self.data_dir)):
                raise UserError(
                    f"--data_dir must be a folder that exists. Received: {self.data_dir}"
                )


def _check_numbers(name, value, count=None):
    """Returns the numbers of a comma-separated list; rejects another text or another count."""
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or (count and len(numbers) != count) or not all(map(math.isfinite, numbers)):
        what = f"{count} numbers" if count else "numbers"
        raise UserError(f"--{name} must be {what} separated by commas. Received: {value}")
    return numbers


@dataclasses.dataclass(frozen=True)
class PixelsConfig(Config):
    """Pixels"""

    channels: str = setting(
        "auto",
        "Channels of the images: a number, or auto (1 where all images are grey, 3 for RGB, and as "
        "many as TIFF or NumPy files have; decided by a sample).",
        filled=True,
    )
    value_range: str = setting(
        "auto",
        "LOW,HIGH: the values that become black and white in images of more than 8 bits; auto: "
        "what a sample shows (4095 for sensors of 12 bits).",
        filled=True,
    )
    channel_mean: str = setting(
        "",
        "Mean of each channel, from 0 (LOW) to 1 (HIGH), separated by commas; empty: ImageNet's "
        "for RGB, measured on a sample for others.",
    )
    channel_std: str = setting(
        "", "Standard deviation of each channel; empty: as for --channel_mean."
    )
    exif_orientation: str = setting(
        "apply",
        "Orientation that a camera wrote into a file: apply (turn the image upright) or ignore "
        "(leave it as it is stored, as the authors' code does).",
        choices=("apply", "ignore"),
    )

    def __post_init__(self):
        super().__post_init__()
        _check_count("channels", self.channels, "auto")
        if self.value_range != "auto":
            low, high = _check_numbers("value_range", self.value_range, 2)
            if low >= high:
                raise UserError(
                    f"--value_range must be LOW,HIGH with LOW < HIGH. Received: {self.value_range}"
                )
        if self.channel_mean:
            _check_numbers("channel_mean", self.channel_mean)
        if self.channel_std and min(_check_numbers("channel_std", self.channel_std)) <= 0:
            raise UserError(f"--channel_std must be above 0. Received: {self.channel_std}")


@dataclasses.dataclass(frozen=True)
class ViewsConfig(Config):
    """Views (defaults: the paper's ImageNet recipe)"""

    image_size: int = setting(224, "Height and width of a view, in pixels.", at_least=8)
    crop_min_area: float = setting(
        0.2, "Smallest area of a random crop, as a share of the image's.", above=0, at_most=1
    )
    jitter_probability: float = setting(0.8, "Probability of colour jitter.", at_least=0, at_most=1)
    brightness: float = setting(
        0.4, "Brightness factor is drawn from [1 - x, 1 + x].", at_least=0, at_most=1
    )
    contrast: float = setting(
        0.4, "Contrast factor is drawn from [1 - x, 1 + x].", at_least=0, at_most=1
    )
    saturation: float = setting(
        0.4, "Saturation factor is drawn from [1 - x, 1 + x].", at_least=0, at_most=1
    )
    hue: float = setting(
        0.1,
        "Hue shift is drawn from [-x, x], in turns of the colour wheel.",
        at_least=0,
        at_most=0.5,
    )
    grayscale_probability: float = setting(
        0.2, "Probability of turning the view grey.", at_least=0, at_most=1
    )
    blur_probability: float = setting(0.5, "Probability of Gaussian blur.", at_least=0, at_most=1)
    blur_sigma_min: float = setting(0.1, "Smallest sigma of the blur, in pixels.", above=0)
    blur_sigma_max: float = setting(2.0, "Largest sigma of the blur, in pixels.", above=0)
    flip_probability: float = setting(
        0.5, "Probability of a left-right flip.", at_least=0, at_most=1
    )
    vertical_flip_probability: float = setting(
        0.0,
        "Probability of an up-down flip, for images without an up, such as from microscopes.",
        at_least=0,
        at_most=1,
    )
    rotate90_probability: float = setting(
        0.0,
        "Probability of a rotation by 90, 180 or 270 degrees, for images without an up.",
        at_least=0,
        at_most=1,
    )
    augment_on: str = setting(
        "host",
        "Where colours, blur and flip are computed: host (the processors that read the images) or "
        "device (inside the training step, for hosts that cannot keep up). The random draws are "
        "the same; the views differ by rounding only.",
        choices=("host", "device"),
    )
    eval_crop_ratio: float = setting(
        0.875,
        "Share of the resized image that evaluation's central crop keeps: 0.875 is 224 of 256 "
        "pixels, 1 is the whole short side.",
        above=0,
        at_most=1,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.blur_sigma_min > self.blur_sigma_max:
            raise UserError(
                "--blur_sigma_min must be at most --blur_sigma_max. Received: "
                f"{self.blur_sigma_min} and {self.blur_sigma_max}"
            )


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Config):
    """Encoder"""

    backbone: str = setting(
        "resnet50",
        "Backbone network: resnet10 (one block per stage), 18, 34, 50, 101 or 152; keras:NAME of "
        "keras.applications; keras_hub:NAME, a class or a preset; your own "
        "package.module:function; or a .keras file. Arguments may follow: "
        "keras:MobileNetV2(alpha=0.5).",
        filled=True,
    )
    width: int = setting(64, "ResNets: channels of the first stage.", at_least=1)
    stem: str = setting(
        "imagenet",
        "ResNets: first layers, imagenet (7x7, stride 2, max-pool) or cifar (3x3, stride 1).",
        choices=("imagenet", "cifar"),
    )
    freeze_stages: int = setting(
        0,
        "Number of first stages that are not trained, nor their statistics, to adapt a pretrained "
        "network to a few images.",
        at_least=0,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.backbone not in network_names.RESNETS:
            network_names.parse(self.backbone)


@dataclasses.dataclass(frozen=True)
class StartConfig(Config):
    """Start"""

    init_from: str = setting(
        "",
        "Weights to start from: a run, an encoder folder, a .keras, .weights.h5, .pth or "
        ".safetensors file, or imagenet (those of keras.applications). Empty: random weights.",
    )


_SELF_SUPERVISED = ("simsiam", "simclr", "mocov2", "byol", "swav", "alternation")
_METHODS = (*_SELF_SUPERVISED, "supervised")
_PREDICTING = ("simsiam", "simclr", "byol", "swav", "alternation")


@dataclasses.dataclass(frozen=True)
class MethodConfig(Config):
    """Method (defaults: SimSiam's)"""

    method: str = setting(
        "simsiam",
        "Method of pre-training. The recipe of each method is a flagfile, such as "
        "configs/byol_r50.cfg.",
        choices=_METHODS,
    )
    projection_layers: int = setting(
        3,
        "Fully connected layers of the projector (section 3).",
        at_least=1,
    )
    projection_hidden_dim: int = setting(
        0,
        "Width of the projector's hidden layers; 0: the width of the backbone's features.",
        at_least=0,
    )
    projection_dim: int = setting(2048, "Dimension d of the projection z.", at_least=2)
    projection_bn: str = setting(
        "all",
        "Batch normalization in the projector (Table 3): none, hidden (hidden layers only), all "
        "(also the output, without scale and offset), all_affine (also the output, with them).",
        choices=("none", "hidden", "all", "all_affine"),
        used_by=_SELF_SUPERVISED,
    )
    predictor: str = setting(
        "mlp",
        "Predictor h: mlp, none (the identity) or fixed (its random initial weights; Table 1).",
        choices=("mlp", "none", "fixed"),
        used_by=_PREDICTING,
    )
    prediction_hidden_dim: int = setting(512, "Width of the predictor's hidden layer.", at_least=1)
    prediction_bn: str = setting(
        "hidden",
        "Batch normalization in the predictor (Table 3): none, hidden, or all (also the output).",
        choices=("none", "hidden", "all"),
        used_by=_PREDICTING,
    )
    stop_gradient: bool = setting(
        True,
        "Stop the gradient at the target; without it SimSiam collapses (section 4.1). SimCLR's "
        "recipe sets false. SwAV stops the gradient at its codes.",
        used_by=("simsiam", "simclr", "swav"),
    )
    similarity: str = setting(
        "cosine",
        "Similarity in the loss: cosine, or cross_entropy of softmaxes (section 4.5).",
        choices=("cosine", "cross_entropy"),
        used_by=("simsiam", "alternation"),
    )
    loss_symmetry: str = setting(
        "symmetric",
        "Pairs in the loss (section 4.6): symmetric (each view predicts the other), asymmetric "
        "(the first view predicts the second), asymmetric_2x (the same for two pairs of views).",
        choices=("symmetric", "asymmetric", "asymmetric_2x"),
        used_by=("simsiam",),
    )
    inner_steps: str = setting(
        "1",
        "Steps for which the targets stay frozen (section 5.2): a number, or epoch.",
        filled=True,
        used_by=("alternation",),
    )
    eta_momentum: float = setting(
        0.0,
        "Share of the old target in each image's moving average of targets (section 5.2: 0.8); "
        "0: no moving average.",
        at_least=0,
        below=1,
        used_by=("alternation",),
    )
    temperature: float = setting(
        0.1,
        "Temperature of the softmax in the loss.",
        above=0,
        used_by=("simclr", "mocov2", "swav"),
    )
    target_momentum: float = setting(
        0.996,
        "Share of the old weights in the momentum encoder's moving average, at the first step.",
        at_least=0,
        at_most=1,
        used_by=("mocov2", "byol"),
    )
    target_momentum_schedule: str = setting(
        "cosine",
        "Schedule of --target_momentum: cosine (half a cosine up to 1 over the run) or constant.",
        choices=("cosine", "constant"),
        used_by=("mocov2", "byol"),
    )
    queue_size: int = setting(
        65536, "Keys in MoCo's queue of negatives.", at_least=1, used_by=("mocov2",)
    )
    num_prototypes: int = setting(
        3000, "Number of SwAV's prototypes.", at_least=2, used_by=("swav",)
    )
    sinkhorn_epsilon: float = setting(
        0.05, "Weight of the entropy term in SwAV's codes.", above=0, used_by=("swav",)
    )
    sinkhorn_iterations: int = setting(
        3, "Sinkhorn-Knopp iterations for SwAV's codes.", at_least=1, used_by=("swav",)
    )
    freeze_prototypes_epochs: int = setting(
        1,
        "Number of first epochs in which SwAV's prototypes do not change.",
        at_least=0,
        used_by=("swav",),
    )

    def __post_init__(self):
        super().__post_init__()
        refuse_unused(self, "method")
        _check_count("inner_steps", self.inner_steps, "epoch")
        if self.eta_momentum and self.inner_steps != "1":
            raise UserError(
                "--eta_momentum moves the targets in every step, so --inner_steps must be 1. "
                f"Received: {self.inner_steps}"
            )


@dataclasses.dataclass(frozen=True)
class OptimizationConfig(Config):
    """Optimisation"""

    batch_size: int = setting(512, "Images in a global batch, over all replicas.", at_least=2)
    epochs: int = setting(
        100, "Passes over the training split. A run may go on with more of them.", at_least=1
    )
    accumulate_steps: int = setting(
        1,
        "Number of parts into which a replica splits its share of a batch, to save memory. Batch "
        "normalization sees one part at a time.",
        at_least=1,
    )
    base_learning_rate: float = setting(
        0.05,
        "Learning rate for a batch of 256; the learning rate is this * batch_size / 256.",
        above=0,
    )
    warmup_epochs: int = setting(
        0, "Epochs of linear warm-up (the paper: 10 for batches of 1024 or more).", at_least=0
    )
    schedule: str = setting(
        "epoch",
        "How often the learning rate changes: at every epoch, as in SimSiam and MoCo v2, or at "
        "every step, as in SimCLR, BYOL and SwAV.",
        choices=("epoch", "step"),
    )
    weight_decay: float = setting(
        1e-4,
        "L2 penalty, added to the gradient of every trained weight; with adamw, decoupled.",
        at_least=0,
    )
    momentum: float = setting(0.9, "Momentum of sgd and lars.", at_least=0, below=1)
    optimizer: str = setting(
        "sgd",
        "Optimizer: sgd, or lars (SGD with a learning rate per tensor), both with momentum; or "
        "adamw, for transformers, whose weight decay is not part of the gradient.",
        choices=("sgd", "lars", "adamw"),
    )
    lars_trust_coefficient: float = setting(
        0.001,
        "LARS: each tensor's learning rate is multiplied by this times its norm over its "
        "gradient's norm.",
        above=0,
    )
    exclude_norm_and_bias: bool = setting(
        False,
        "Exclude biases, and the scales and offsets of normalization, from the L2 penalty and from "
        "LARS' scaling.",
    )
    fix_predictor_learning_rate: bool = setting(
        True, "Keep the learning rate of SimSiam's predictor at its initial value (Table 1c)."
    )


@dataclasses.dataclass(frozen=True)
class KnnConfig(Config):
    """Nearest neighbours (kNN)"""

    knn_k: int = setting(200, "Number of neighbours that vote.", at_least=1, defines_run=False)
    knn_temperature: float = setting(
        0.1,
        "A neighbour's vote weighs exp(cosine similarity / temperature).",
        above=0,
        defines_run=False,
    )


@dataclasses.dataclass(frozen=True)
class MonitorConfig(Config):
    """Monitors"""

    log_every_steps: int = setting(
        10, "Steps from one line of metrics to the next.", at_least=1, defines_run=False
    )
    on_collapse: str = setting(
        "warn",
        "Reaction to features that are collapsed for two epochs: warn, or stop, which saves the "
        "run and ends it with an error.",
        choices=("warn", "stop"),
        defines_run=False,
    )
    track: str = setting(
        "none",
        "Experiment tracker that gets the metrics as well: none, wandb or mlflow. It needs "
        "requirements-track.txt.",
        choices=("none", "wandb", "mlflow"),
        defines_run=False,
    )
    health_every_epochs: int = setting(
        1,
        "Epochs from one measurement of effective rank and alignment, without labels, to the next; "
        "0: none.",
        at_least=0,
        defines_run=False,
    )
    knn_every_epochs: int = setting(
        1, "Epochs from one kNN evaluation to the next; 0: none.", at_least=0, defines_run=False
    )
    knn_dataset: str = setting(
        "",
        "Labelled data set for the kNN monitor; empty: the one that is trained on.",
        defines_run=False,
    )
    knn_data_dir: str = setting("", "Like --data_dir, for --knn_dataset.", defines_run=False)
    knn_bank_size: int = setting(
        50_000,
        "Largest number of training images that the kNN monitor compares with.",
        at_least=1,
        defines_run=False,
    )
    histogram_every_epochs: int = setting(
        0,
        "Epochs from one histogram of every weight in TensorBoard to the next; 0: none.",
        at_least=0,
        defines_run=False,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.knn_data_dir and not self.knn_dataset:
            raise UserError(
                "--knn_data_dir needs --knn_dataset, the data set that is read from it. "
                f"Received: {self.knn_data_dir}"
            )


@dataclasses.dataclass(frozen=True)
class DevicesConfig(Config):
    """Devices"""

    strategy: str = setting(
        "auto",
        "Devices: default (one), mirrored (all GPUs of this machine, or --cpu_replicas), "
        "multi_worker (several machines, from TF_CONFIG or Slurm), tpu, auto (multi_worker where "
        "TF_CONFIG names a cluster, else mirrored where there are several devices, else default).",
        choices=("auto", "default", "mirrored", "multi_worker", "tpu"),
        defines_run=False,
    )
    tpu: str = setting(
        "local",
        "TPU of --strategy=tpu: local, the TPU of the machine that runs the program. A TPU given "
        "by name or address, or one that spans several machines, is rejected.",
        filled=True,
        defines_run=False,
    )
    cpu_replicas: int = setting(
        1,
        "Number of logical devices into which the CPU is split, to try distribution without "
        "accelerators.",
        at_least=1,
        at_most=64,
        defines_run=False,
    )
    deterministic: str = setting(
        "auto",
        "Use only kernels that give the same bits in every run: auto (true on CPUs, false on GPUs "
        "and TPUs), true or false.",
        choices=SWITCH,
        defines_run=False,
    )
    tf32: bool = setting(
        True,
        "Let float32 convolutions and matrix products round their inputs to TensorFloat-32 on "
        "NVIDIA GPUs from Ampere on; false: full float32, several times slower.",
        defines_run=False,
    )


@dataclasses.dataclass(frozen=True)
class SystemConfig(DevicesConfig):
    """System"""

    precision: str = setting(
        "float32",
        "Number format of the arithmetic. In the mixed formats weights, statistics, the heads' "
        "output and the loss stay float32. float64 is for exact comparisons.",
        choices=("float32", "mixed_bfloat16", "mixed_float16", "float64"),
    )
    xla: str = setting(
        "auto",
        "Compile each replica's training step by XLA: auto (true on GPUs and TPUs, false on CPUs), "
        "true or false.",
        choices=SWITCH,
        defines_run=False,
    )
    steps_per_loop: str = setting(
        "auto",
        "Steps that the devices run without waiting for Python: a number, or auto (1 on CPUs; on "
        "GPUs and TPUs all steps up to the next line of metrics, kNN evaluation or checkpoint).",
        filled=True,
        defines_run=False,
    )
    seed: int = setting(0, "Seed of weights, order and views.", at_least=0, at_most=2**31 - 1)
    workdir: str = setting(
        "runs/simsiam",
        "Folder of the run, or its URL (gs://...): flags, checkpoints, metrics, TensorBoard, "
        "encoder.",
        filled=True,
        defines_run=False,
    )
    checkpoint_every_steps: int = setting(
        1000,
        "Steps from one checkpoint to the next; the last step is always saved.",
        at_least=1,
        defines_run=False,
    )
    keep_checkpoints: int = setting(
        3, "Number of newest checkpoints that are kept.", at_least=1, defines_run=False
    )
    keep_every_steps: int = setting(
        0,
        "Also keep the checkpoints at multiples of this step for good; 0: none.",
        at_least=0,
        defines_run=False,
    )
    max_nonfinite_steps: int = setting(
        10,
        "Number of skipped steps in a row after which the run stops. A step is skipped, and "
        "changes no weight, if its loss or gradient is not finite.",
        at_least=1,
        defines_run=False,
    )
    replay_step: int = setting(
        0,
        "Repeat this step of the run in --workdir with every layer checked, print the first that "
        "is not finite, and stop; 0: train.",
        at_least=0,
        defines_run=False,
    )
    export: bool = setting(
        False,
        "Export the encoder of the newest checkpoint and stop, without training.",
        defines_run=False,
    )

    def __post_init__(self):
        super().__post_init__()
        _check_count("steps_per_loop", self.steps_per_loop, "auto")


# What `--help` shows, in the order of use; `--helpfull` shows all flags.
_MAIN_FLAGS = {
    "dataset": "digits, folder, list, tar, parquet, packed or a TFDS name",
    "data_dir": "where the images are",
    "eval_split": "split of held-out images, if there is one",
    "workdir": "folder of the run",
    "epochs": "passes over the images",
    "batch_size": "images in a step, over all devices",
    "base_learning_rate": "learning rate for a batch of 256",
    "warmup_epochs": "epochs in which the learning rate rises",
    "method": ", ".join(_METHODS),
    "backbone": "resnet10 to resnet152, keras:NAME, keras_hub:NAME or a .keras file",
    "width": "channels of a ResNet's first stage",
    "init_from": "weights to start from: a run, a file, or imagenet",
    "image_size": "pixels of a view",
    "crop_min_area": "smallest area of a crop, as a share of the image",
    "flip_probability": "0 if a mirror image is another thing",
    "on_bad_image": "error, or skip images that cannot be read",
    "on_collapse": "warn, or stop the run",
    "strategy": "auto, default, mirrored, multi_worker or tpu",
    "precision": "float32, mixed_bfloat16, mixed_float16 or float64",
    "seed": "of weights, order and views",
}


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Config):
    """What `train.py` does: pre-train an encoder on unlabelled images."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    pixels: PixelsConfig = dataclasses.field(default_factory=PixelsConfig)
    views: ViewsConfig = dataclasses.field(default_factory=ViewsConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    start: StartConfig = dataclasses.field(default_factory=StartConfig)
    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    optimization: OptimizationConfig = dataclasses.field(default_factory=OptimizationConfig)
    monitor: MonitorConfig = dataclasses.field(default_factory=MonitorConfig)
    knn: KnnConfig = dataclasses.field(default_factory=KnnConfig)
    system: SystemConfig = dataclasses.field(default_factory=SystemConfig)
    main_flags: ClassVar[dict[str, str]] = _MAIN_FLAGS
    # With --recipe=auto, the names of the flags that are given; others may be chosen. Else None.
    given: frozenset[str] | None = None
