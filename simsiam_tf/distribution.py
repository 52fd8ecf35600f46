"""Devices: the strategy that a flag names, and what replicas say to each other."""

import contextlib

import keras
import tensorflow as tf
from absl import logging

from simsiam_tf.schema import UserError


def build_strategy(config):
    """The `tf.distribute` strategy and number format of a `SystemConfig`.

    Call it once, before TensorFlow has used a device: it may split the CPU into logical devices.
    """
    # Some kernels add up in the order in which threads finish; a run is defined by its flags.
    tf.config.experimental.enable_op_determinism()
    keras.config.set_floatx(config.precision)
    keras.config.set_dtype_policy(config.precision)
    gpus = tf.config.list_logical_devices("GPU") if config.cpu_replicas == 1 else []
    devices = [f"GPU:{index}" for index in range(len(gpus))]
    if config.cpu_replicas > 1:
        devices = _split_cpu(config.cpu_replicas)
    name = config.strategy
    if name == "auto":
        name = "mirrored" if len(devices) > 1 else "default"
    if name == "default" and config.cpu_replicas > 1:
        raise UserError(
            "--cpu_replicas above 1 needs --strategy=mirrored (or auto). Received: "
            f"--strategy=default --cpu_replicas={config.cpu_replicas}"
        )
    if name == "default":
        strategy = tf.distribute.get_strategy()
    else:
        strategy = tf.distribute.MirroredStrategy(devices or ["CPU:0"])
    logging.info(
        "Strategy %s on %d replica(s): %s",
        name,
        strategy.num_replicas_in_sync,
        ", ".join(devices) or "CPU",
    )
    return strategy


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):  # in use already: fine if it is split as asked
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    found = len(tf.config.list_logical_devices("CPU"))
    if found < count:
        raise UserError(
            f"--cpu_replicas={count} must be set before TensorFlow starts. Received: a process "
            f"whose CPU is split into {found}"
        )
    return [f"CPU:{index}" for index in range(count)]


def num_replicas():
    """How many replicas take part in the current step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def mean_over_replicas(value):
    """The mean of a tensor over all replicas, in replica context: one collective."""
    if num_replicas() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)


def gather_over_replicas(value):
    """`[...]` of each replica → `[replicas, ...]`, in replica context: one collective."""
    value = value[tf.newaxis]
    if num_replicas() == 1:
        return value
    gathered = tf.distribute.get_replica_context().all_gather(value, axis=0)
    return tf.ensure_shape(gathered, [num_replicas(), *value.shape[1:]])
