from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.data.pixels import RGB
from simsiam_tf.export import from_checkpoint, saved_model
from simsiam_tf.export.settings import ExportConfig
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.runs.run_folder import write_flags
from simsiam_tf.schema import UserError


@pytest.fixture
def run(tmp_path, pretrain_config):
    """A workdir with checkpoints of steps 5 and 10, and the features of both."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = pretrain_config(
        width=4, stem="cifar", backbone="resnet18", image_size=16, workdir=str(workdir)
    )
    write_flags(config, 0)
    images = tf.random.stateless_uniform([2, 16, 16, 3], [0, 0], 0, 255)
    encoder, features = ResNet(config.encoder, seed=0), {}
    for step in (5, 10):
        for variable in encoder.weights:
            variable.assign(variable.value * 1.1 + 0.1)
        Checkpoints(str(workdir), encoder).save(step)
        features[step] = encoder(RGB.normalize(images / 255), training=False)
    return SimpleNamespace(workdir=workdir, images=images, features=features)


@pytest.mark.parametrize(
    ("checkpoint", "step", "name"),
    [("", 10, "encoder"), ("checkpoints/step-000000005/", 5, "encoder-step-000000005")],
    ids=["newest checkpoint of a run", "named checkpoint"],
)
def test_the_encoder_of_a_checkpoint_is_written_into_the_run(run, capsys, checkpoint, step, name):
    from_checkpoint.export(ExportConfig(checkpoint=f"{run.workdir}/{checkpoint}"))
    output = run.workdir / name
    encode, description = saved_model.load(str(output))
    np.testing.assert_allclose(encode(run.images), run.features[step], rtol=1e-5, atol=1e-6)
    assert (description["step"], description["image_size"]) == (step, 16)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{output}: the encoder of step {step}. Its features differ by at most ")


def test_a_named_checkpoint_that_is_damaged_is_refused_and_not_replaced_by_another(run):
    folder = run.workdir / "checkpoints" / "step-000000010"
    (folder / "state.index").write_bytes(b"")
    with pytest.raises(UserError, match=r"--checkpoint must be complete \(state.index changed"):
        from_checkpoint.export(ExportConfig(checkpoint=str(folder)))
    assert not list(run.workdir.glob("encoder*"))


@pytest.mark.parametrize(
    ("checkpoint", "output", "words"),
    [
        ("none", "", "--checkpoint must be the folder of a run, with its flags.cfg"),
        ("run/checkpoints/step-000000007", "", "--checkpoint must be complete .*manifest"),
        ("empty", "", "--checkpoint must be a run with a checkpoint; train first"),
        ("run", "run", "--output must be a new or an empty folder, or an encoder"),
        ("run", "run/flags.cfg", "--output must be a new or an empty folder, or an encoder"),
        ("run", "run/flags.cfg/encoder", "--output must be in a folder that can be written to"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_is_written(
    run, tmp_path, checkpoint, output, words
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "flags.cfg").write_text("--width=4\n--backbone=resnet18\n")
    before = sorted(tmp_path.rglob("*"))
    config = ExportConfig(
        checkpoint=str(tmp_path / checkpoint), output=str(tmp_path / output) if output else ""
    )
    with pytest.raises(UserError, match=words):
        from_checkpoint.export(config)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_does_not_replace_a_folder(run, tmp_path):
    (tmp_path / "encoder.onnx").mkdir()
    config = ExportConfig(
        checkpoint=str(run.workdir), format="onnx", output=str(tmp_path / "encoder.onnx")
    )
    with pytest.raises(UserError, match="--output must be a file"):
        from_checkpoint.export(config)


def test_an_output_with_the_suffix_of_another_format_is_refused():
    with pytest.raises(UserError, match=r"--format=litert must end in \.tflite. Received: a.onnx"):
        ExportConfig(checkpoint="run", format="litert", output="a.onnx")


@pytest.mark.parametrize(
    ("format_", "package"),
    [("onnx", "tf2onnx"), ("onnx", "onnxruntime"), ("litert", "ai_edge_litert")],
)
def test_a_missing_package_is_named_before_tensorflow_loads(new_program, format_, package):
    # The package and TensorFlow cannot be imported, as if they were not installed.
    code = (
        "import runpy, sys\n"
        f"sys.modules['{package}'] = sys.modules['tensorflow'] = None\n"
        "runpy.run_module('simsiam_tf.export', run_name='__main__', alter_sys=True)"
    )
    finished = new_program("-c", code, "--checkpoint=run", f"--format={format_}")
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    hint = "pip install -r requirements-export.txt, or simsiam-tf[export]"
    assert line == f"export: --format={format_} needs {package}: {hint}"
