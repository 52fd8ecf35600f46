"""train.py on a worker whose CPU counts as two devices, as a machine with two GPUs has them.

TensorFlow gives a worker without GPUs one device. Here it gives two halves of the CPU.
"""

import runpy
import sys

import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

COUNT = 2


def two_cpus(self, cluster_resolver, worker_device):
    return tuple(f"{worker_device}/device:CPU:{index}" for index in range(COUNT)), "CPU"


if __name__ == "__main__":
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * COUNT
    )
    extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
    extended._initialize_local_devices = two_cpus
    sys.argv[0] = "train.py"
    runpy.run_path("train.py", run_name="__main__")
