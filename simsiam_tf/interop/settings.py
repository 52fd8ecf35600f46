"""The settings of the interop programs, without TensorFlow: a wrong flag is reported at once."""

import dataclasses

from simsiam_tf.schema import Config, UserError, setting


@dataclasses.dataclass(frozen=True)
class ImportConfig(Config):
    """Import"""

    checkpoint: str = setting(
        "",
        "PyTorch file to read: the authors' pre-training checkpoint, a SimSiam or torchvision "
        "state dict, or the same state dict as .safetensors.",
        filled=True,
    )
    output: str = setting("", "New folder for the SavedModel of the encoder.", filled=True)
    workdir: str = setting(
        "",
        "New folder for a run that train.py resumes when it gets the same flags. The run has the "
        "encoder, the heads and, if the file has it, the momentum. Empty: no run is written.",
    )
    step: int = setting(
        0,
        "Training step at which the run resumes: completed epochs times (images // batch size). 0 "
        "restarts the learning-rate schedule.",
        at_least=0,
    )
    image_size: int = setting(
        224,
        "Height and width of the encoder's input in pixels, as written to encoder.json.",
        at_least=8,
    )
    eval_crop_ratio: float = setting(
        0.875,
        "Fraction of the resized image that the central crop of the evaluation keeps.",
        above=0,
        at_most=1,
    )


@dataclasses.dataclass(frozen=True)
class SourceConfig(Config):
    """Source"""

    encoder: str = setting("", "Folder of the encoder's SavedModel. Give this or --workdir.")
    workdir: str = setting(
        "", "Folder of a run, whose newest checkpoint is read. Give this or --encoder."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.encoder) == bool(self.workdir):
            raise UserError(
                "--encoder or --workdir must be given, and not both. Received: "
                f"--encoder={self.encoder} --workdir={self.workdir}"
            )


@dataclasses.dataclass(frozen=True)
class TorchExportConfig(Config):
    """Export"""

    source: SourceConfig
    output: str = setting("", "File to write: .pth or .safetensors.", filled=True)
    whole: bool = setting(
        False,
        "Write a checkpoint for the authors' main_simsiam.py --resume, with projector, predictor "
        "and momentum, instead of torchvision's tensors. Needs --workdir and a .pth output.",
    )
    epoch: int = setting(
        0, "Number of completed epochs that --whole writes to the checkpoint.", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.whole and (not self.source.workdir or self.output.endswith(".safetensors")):
            raise UserError(
                "--whole needs --workdir and an --output that does not end in .safetensors. "
                f"Received: --workdir={self.source.workdir} --output={self.output}"
            )


@dataclasses.dataclass(frozen=True)
class Detectron2ExportConfig(Config):
    """Export"""

    source: SourceConfig
    output: str = setting(
        "", "File to write, .pkl: Detectron2 recognises the format by the suffix.", filled=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output.endswith(".pkl"):
            raise UserError(f"--output must end in .pkl. Received: {self.output}")
