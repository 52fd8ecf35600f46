"""The settings of the interop programs; a wrong one is answered before TensorFlow loads."""

import dataclasses

from simsiam_tf.schema import Config, UserError, setting


@dataclasses.dataclass(frozen=True)
class ImportConfig(Config):
    """Import"""

    checkpoint: str = setting(
        "",
        "PyTorch file: the authors' pre-training checkpoint, a SimSiam or torchvision state dict, "
        "or such a state dict as .safetensors.",
        filled=True,
    )
    output: str = setting("", "New folder for the encoder's SavedModel.", filled=True)
    workdir: str = setting(
        "",
        "New run that train.py goes on with, given the same flags: weights, heads and the momentum "
        "where the file has it. Empty: none.",
    )
    step: int = setting(
        0,
        "Step of training that the run goes on from: epochs behind it times images // batch. 0 "
        "starts the schedule anew.",
        at_least=0,
    )
    image_size: int = setting(
        224, "Height and width of the encoder's input in pixels, for encoder.json.", at_least=8
    )
    eval_crop_ratio: float = setting(
        0.875,
        "Share of the resized image that evaluation's central crop keeps.",
        above=0,
        at_most=1,
    )


@dataclasses.dataclass(frozen=True)
class SourceConfig(Config):
    """Source"""

    encoder: str = setting("", "Folder of an encoder's SavedModel. This or --workdir.")
    workdir: str = setting("", "Folder of a run: its newest checkpoint. This or --encoder.")

    def __post_init__(self):
        super().__post_init__()
        if bool(self.encoder) == bool(self.workdir):
            raise UserError(
                "--encoder or --workdir must be given, one of them. Received: "
                f"--encoder={self.encoder} --workdir={self.workdir}"
            )


@dataclasses.dataclass(frozen=True)
class TorchExportConfig(Config):
    """Export"""

    source: SourceConfig
    output: str = setting("", "The file: .pth, or .safetensors.", filled=True)
    whole: bool = setting(
        False,
        "Write the authors' checkpoint instead of torchvision's tensors: projector, predictor and "
        "momentum too, for their main_simsiam.py --resume. Needs --workdir and a .pth.",
    )
    epoch: int = setting(0, "Epochs of training behind it, for --whole.", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.whole and (not self.source.workdir or self.output.endswith(".safetensors")):
            raise UserError(
                "--whole needs --workdir, and an --output that is no .safetensors. Received: "
                f"--workdir={self.source.workdir} --output={self.output}"
            )


@dataclasses.dataclass(frozen=True)
class Detectron2ExportConfig(Config):
    """Export"""

    source: SourceConfig
    output: str = setting("", "The file, .pkl: Detectron2 tells its kind by the name.", filled=True)

    def __post_init__(self):
        super().__post_init__()
        if not self.output.endswith(".pkl"):
            raise UserError(f"--output must end in .pkl. Received: {self.output}")
