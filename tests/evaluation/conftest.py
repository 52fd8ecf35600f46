"""What the tests of evaluations share: an encoder of pixels, and `evaluate.py` in their process."""

import json
from types import SimpleNamespace

import pytest
import tensorflow as tf

from simsiam_tf import flags
from simsiam_tf.evaluation import run
from simsiam_tf.evaluation.config import EvaluationConfig
from simsiam_tf.export import saved_model


@pytest.fixture
def pixels_encoder(tmp_path):
    """A SavedModel of another program with the same signature; its features are the pixels."""
    module = tf.Module()
    module.serve = tf.function(
        lambda images: {"features": tf.reshape(images, [-1, 8 * 8 * 3]) - 100},
        [tf.TensorSpec([None, 8, 8, 3], tf.float32, "images")],
    )
    tf.saved_model.save(module, str(tmp_path / "pixels"), {"serving_default": module.serve})
    return tmp_path / "pixels"


@pytest.fixture
def evaluate(evaluation_config, pixels_encoder, tfds_dir, capsys):
    """(**settings) → the result on the pixels of the digits, and the number of encoded images."""
    settings = {
        "encoder": str(pixels_encoder),
        "data_dir": str(tfds_dir),
        "image_size": 8,
        "eval_crop_ratio": 1.0,
    }

    def run_it(**more):
        encoded = []
        with pytest.MonkeyPatch.context() as patch:

            def load(directory):
                encode, description = saved_model.load(directory)

                def encode_and_count(images):
                    encoded.append(images.shape[0] or 0)
                    return encode(images)

                return encode_and_count, description

            patch.setattr(
                run, "saved_model", SimpleNamespace(load=load, versions=saved_model.versions)
            )
            run.run(evaluation_config(**settings | more))
        return json.loads(capsys.readouterr().out.splitlines()[-1]), sum(encoded)

    return run_it


@pytest.fixture
def evaluate_here(tfds_dir, capsys):
    """(*flags) → the last line of stdout, of `evaluate.py` in the test's process."""

    def evaluate(*arguments):
        run.run(flags.read([*arguments, f"--data_dir={tfds_dir}"], EvaluationConfig))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return evaluate
