"""Our side of a benchmark: what a run makes of its flags, and its loop over given batches."""

import os

import simsiam_tf  # noqa: F401  (before TensorFlow)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf

from simsiam_tf import schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import views
from simsiam_tf.distribution import devices
from simsiam_tf.methods.build import build_model
from simsiam_tf.training import loop


def build(**flags):
    """The config, strategy and model of a run's flags; once in a process, as a run does it.

    Args:
      **flags: of `train.py`; what is not named keeps its default.
    """
    config = schema.build(PretrainConfig, schema.defaults(PretrainConfig) | flags)
    strategy = devices.build_strategy(config.system)
    model, _ = build_model(config, strategy)
    return config, strategy, model


def compiled_step(config, model):
    """The training step as a function of normalised views, without a loop around it."""
    xla = devices.uses_xla(config.system, tf.distribute.get_strategy())
    return tf.function(model.train_step, jit_compile=xla)


def train(config, strategy, model, batches_of, *, batch_size, num_steps, steps_per_loop):
    """The `Step`s of the run's own loop.

    Args:
      config: of `build`, like `strategy` and `model`.
      batches_of: a `tf.distribute.InputContext` → a data set of one replica's shares.
      batch_size: global.
      num_steps: a multiple of `steps_per_loop`.
      steps_per_loop: steps without Python between them.
    """
    return loop.run_steps(
        strategy,
        model,
        strategy.distribute_datasets_from_function(batches_of),
        views.prepare,
        replica_batch_size=batch_size // strategy.num_replicas_in_sync,
        first_step=0,
        loop_end=lambda done: min(done + steps_per_loop, num_steps),
        xla=devices.uses_xla(config.system, strategy),
    )
