"""This project's side of a benchmark: the model of a run, its step and its loop."""

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
    """Returns the config, the strategy and the model of a run. Call it once in a process.

    Args:
      **flags: flags of `train.py`; all others keep their defaults.
    """
    config = schema.build(PretrainConfig, schema.defaults(PretrainConfig) | flags)
    strategy = devices.build_strategy(config.system)
    model, _ = build_model(config, strategy)
    return config, strategy, model


def compiled_step(config, model):
    """Returns the training step as a function of normalised views, without the loop."""
    xla = devices.uses_xla(config.system, tf.distribute.get_strategy())
    return tf.function(model.train_step, jit_compile=xla, autograph=False)


def train(config, strategy, model, batches_of, *, batch_size, num_steps, steps_per_loop):
    """Returns the iterator over the `Step`s of the run's own loop.

    Args:
      config: the config from `build`.
      strategy: the strategy from `build`.
      model: the model from `build`.
      batches_of: a function from a `tf.distribute.InputContext` to a data set of one replica's
        shares of the batches.
      batch_size: the global batch size.
      num_steps: the number of steps, a multiple of `steps_per_loop`.
      steps_per_loop: the number of steps without Python between them.
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
