"""Exports the encoder of a run's checkpoint, and compares the export with the encoder.

    python -m simsiam_tf.export --checkpoint=runs/mine --format=onnx
    python -m simsiam_tf.export --checkpoint=runs/mine/checkpoints/step-000000220

The formats onnx and litert need more packages: pip install -r requirements-export.txt.
"""

from simsiam_tf import flags
from simsiam_tf.export.settings import ExportConfig


def main(config: ExportConfig) -> None:
    with flags.heavy_imports():  # TensorFlow loads only now, after the flags are checked
        from simsiam_tf.export import from_checkpoint

    from_checkpoint.export(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, ExportConfig)


if __name__ == "__main__":
    command()
