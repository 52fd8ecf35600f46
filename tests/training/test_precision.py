"""A run in mixed precision from its first step to the evaluation of its encoder."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY_RUN
from run_results import assert_same_run, weights_of

from simsiam_tf.export import saved_model


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_run_in_mixed_precision_is_saved_resumed_exported_and_evaluated(
    train_here, evaluate_here, tmp_path, precision
):
    flags = [*TINY_RUN, f"--precision={precision}", "--epochs=1", "--checkpoint_every_steps=13"]
    flags += ["--width=4", "--knn_every_epochs=1"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_here(whole, *flags)
    assert {value.dtype for value in weights_of(whole).values()} <= {
        np.dtype("float32"), np.dtype("int64"), np.dtype("int32"),
    }  # fmt: skip

    shutil.copytree(whole, resumed)
    (resumed / "summary.json").unlink()
    shutil.rmtree(resumed / "encoder")
    shutil.rmtree(resumed / "checkpoints" / "step-000000022")
    train_here(resumed, *flags)
    assert_same_run(resumed, whole)

    features = [
        saved_model.load(str(run / "encoder"))[0](
            tf.random.stateless_uniform([2, 16, 16, 3], [0, 1], 0, 255)
        )
        for run in (whole, resumed)
    ]
    assert features[0].dtype == tf.float32
    np.testing.assert_array_equal(*features)
    result = evaluate_here(f"--encoder={resumed / 'encoder'}", "--protocol=knn", "--knn_k=20")
    during = json.loads((resumed / "summary.json").read_text())["knn_top1"]
    assert result["top1"] == pytest.approx(during, abs=1.5)  # five of 360 digits
