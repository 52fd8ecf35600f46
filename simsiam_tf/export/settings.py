"""Settings of `python -m simsiam_tf.export`."""

import dataclasses
import importlib.util

from simsiam_tf import schema
from simsiam_tf.schema import UserError, setting

# format → (suffix of its file, packages that it needs)
_FORMATS = {
    "savedmodel": ("", ()),
    "onnx": (".onnx", ("tf2onnx", "onnxruntime")),
    "litert": (".tflite", ("ai_edge_litert",)),
}


@dataclasses.dataclass(frozen=True)
class ExportConfig(schema.Config):
    """Export"""

    checkpoint: str = setting(
        "",
        "Workdir of a run, for its newest checkpoint, or the folder of one of its checkpoints.",
        filled=True,
    )
    format: str = setting(
        "savedmodel",
        "Format: savedmodel (a folder), onnx (.onnx) or litert (.tflite).",
        choices=tuple(_FORMATS),
    )
    output: str = setting(
        "",
        "Folder or file to write. Empty: encoder, encoder.onnx or encoder.tflite in the run's "
        "folder; encoder-step-… instead of encoder if --checkpoint names one checkpoint.",
    )

    @property
    def suffix(self) -> str:
        """The suffix of the format's file; empty for a folder."""
        return _FORMATS[self.format][0]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output and not self.output.endswith(self.suffix):
            raise UserError(
                f"--output of --format={self.format} must end in {self.suffix}. "
                f"Received: {self.output}"
            )
        missing = [name for name in _FORMATS[self.format][1] if not importlib.util.find_spec(name)]
        if missing:
            raise UserError(
                f"--format={self.format} needs {' and '.join(missing)}: "
                "pip install -r requirements-export.txt, or simsiam-tf[export]"
            )
