"""The devices of a run: builds the `tf.distribute` strategy that its flags ask for."""

import contextlib
import functools
import json
import os
import platform

import keras
import tensorflow as tf
from absl import logging

from simsiam_tf.config import SystemConfig
from simsiam_tf.distribution import workers
from simsiam_tf.schema import UserError


def build_strategy(config: SystemConfig) -> tf.distribute.Strategy:
    """Returns the strategy that `config` describes, and sets the number format of Keras.

    Call it once, before TensorFlow has used a device: it may split the CPU into logical devices or
    join a cluster.

    Raises:
      UserError: the settings do not fit together, or the devices are not available.
    """
    on_tpu = config.strategy == "tpu"
    accelerated = on_tpu or (config.cpu_replicas == 1 and bool(_use_gpus()))
    if config.deterministic == "true" or (config.deterministic == "auto" and not accelerated):
        # Without it, some kernels sum in the order in which threads finish.
        tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
    keras.config.set_floatx("float64" if config.precision == "float64" else "float32")
    keras.config.set_dtype_policy(config.precision)
    name = config.strategy
    if name == "auto" and len(_workers_of_environment()) > 1:
        name = "multi_worker"
    if config.cpu_replicas > 1 and name not in ("auto", "mirrored"):
        raise UserError(
            "--cpu_replicas above 1 needs --strategy=mirrored (or auto). Received: "
            f"--strategy={name} --cpu_replicas={config.cpu_replicas}"
        )
    if name == "multi_worker":
        strategy = _join_cluster()
    elif name == "tpu":
        strategy = _connect_to_tpu(config)
    else:
        strategy = _local_strategy(name, config.cpu_replicas)
    if config.xla == "true" and strategy.num_replicas_in_sync > 1 and not on_accelerators(strategy):
        raise UserError(
            "--xla needs one replica, or accelerators: XLA cannot compile collectives for CPUs. "
            f"Received: --xla on {strategy.num_replicas_in_sync} replicas"
        )
    if accelerated and not on_tpu:
        _try_xla()
    logging.info(
        "%s on %d replica(s); this process is %s",
        type(strategy).__name__.strip("_"),
        strategy.num_replicas_in_sync,
        workers.worker_name(strategy),
    )
    return strategy


def _use_gpus() -> list[tf.config.PhysicalDevice]:
    """Returns the GPUs of this process and lets TensorFlow allocate their memory on demand.

    An evaluation can then share a GPU with a training run. With TF_FORCE_GPU_ALLOW_GROWTH=false,
    TensorFlow allocates all of the memory at the start, which is its own default.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # the GPU is already in use
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def _try_xla() -> None:
    """Raises an error early if XLA, which normalization needs, cannot compile for the GPU."""
    try:
        tf.function(lambda x: tf.math.rsqrt(tf.exp(x)), jit_compile=True)(tf.ones([8]))
    except tf.errors.OpError as error:
        raise UserError(
            "XLA must be able to compile for this GPU. It needs CUDA's ptxas and libdevice, which "
            "the package nvidia-cuda-nvcc-cu12 contains. "
            f"Received: {' '.join(error.message.split())}"
        ) from error


def on_accelerators(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether the replicas of a strategy are GPUs or TPUs."""
    return device_type(strategy) != "CPU"


def uses_xla(config: SystemConfig, strategy: tf.distribute.Strategy) -> bool:
    """Returns whether XLA compiles the whole training step of a run with these settings."""
    return config.xla == "true" or (config.xla == "auto" and on_accelerators(strategy))


def _local_strategy(name: str, cpu_replicas: int) -> tf.distribute.Strategy:
    if cpu_replicas > 1:
        devices = _split_cpu(cpu_replicas)
    else:
        count = len(tf.config.list_logical_devices("GPU"))
        devices = [f"GPU:{index}" for index in range(count)]
    if name == "default" or (name == "auto" and len(devices) < 2):
        return tf.distribute.get_strategy()
    return _mirrored(*(devices or ["CPU:0"]))


@functools.cache  # a second strategy in a process would reuse the first one's collective keys
def _mirrored(*devices: str) -> tf.distribute.MirroredStrategy:
    return tf.distribute.MirroredStrategy(devices)


def _workers_of_environment() -> list[str]:
    """Returns the addresses of the workers in TF_CONFIG; empty if it names none."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        cluster = json.loads(text or "{}").get("cluster", {})
        return [*cluster.get("chief", []), *cluster.get("worker", [])]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            'TF_CONFIG must have TensorFlow\'s format: {"cluster": {"worker": ["host:port", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}. Received: {text}'
        ) from error


def _join_cluster() -> tf.distribute.MultiWorkerMirroredStrategy:
    """Returns the strategy of this worker, which TF_CONFIG or else Slurm's variables identify."""
    if not (_workers_of_environment() or "SLURM_STEP_NUM_TASKS" in os.environ):
        raise UserError(
            "--strategy=multi_worker needs TF_CONFIG, or a program that Slurm's srun starts. "
            "Received: neither"
        )
    try:
        if _workers_of_environment():
            resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        else:
            resolver = _slurm_resolver()
        logging.info("Waiting for all workers of the cluster %s", resolver.cluster_spec().as_dict())
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(
            f"--strategy=multi_worker cannot join its cluster: {error}. Received: "
            f"TF_CONFIG={os.environ.get('TF_CONFIG', 'none')}"
        ) from error


def _slurm_resolver() -> tf.distribute.cluster_resolver.ClusterResolver:
    """Returns the cluster of an srun step; a task has the GPUs that Slurm makes visible to it."""
    resolvers = tf.distribute.cluster_resolver
    # Slurm's resolver divides a node's GPUs among its tasks itself, and fails on a node without
    # GPUs. One fictitious GPU for each task avoids that.
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    slurm = resolvers.SlurmClusterResolver(gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)
    cluster = slurm.cluster_spec()
    return resolvers.SimpleClusterResolver(
        cluster,
        task_type=slurm.task_type,
        task_id=slurm.task_id,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


def _connect_to_tpu(config: SystemConfig) -> tf.distribute.TPUStrategy:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if config.tpu != "local" or "," in hosts:
        # The pipeline decodes images in Python, which would run on this machine's processors only.
        raise UserError(
            "--strategy=tpu needs the program to run on the machine that has all of the TPU's "
            "chips, because Python reads the images there. Start it on a TPU VM with one host, "
            f"with --tpu=local. Received: --tpu={config.tpu}, "
            f"TPU_WORKER_HOSTNAMES={hosts or 'none'}"
        )
    for name, refused in {"xla": "false", "precision": "float64"}.items():
        if getattr(config, name) == refused:
            raise UserError(f"A TPU cannot run --{name}={refused}. Received: --strategy=tpu")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=config.tpu)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        raise UserError(
            f"--strategy=tpu found no TPU that it could start ({str(error).split('. ')[0]}). "
            f"Received: --tpu={config.tpu}"
        ) from error


def _split_cpu(count: int) -> list[str]:
    """Returns the names of `count` logical devices that the CPU is split into."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):  # already in use; the check below decides
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    found = len(tf.config.list_logical_devices("CPU"))
    if found < count:
        raise UserError(
            f"--cpu_replicas={count} must be set before TensorFlow starts. Received: a process "
            f"whose CPU is split into {found} device(s)"
        )
    return [f"CPU:{index}" for index in range(count)]


def num_local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of a strategy's replicas that belong to this process."""
    if workers.has_several_workers(strategy):
        return len(strategy.extended.worker_devices)
    return strategy.num_replicas_in_sync


def device_type(strategy: tf.distribute.Strategy) -> str:
    """Returns the type of the devices of a strategy's replicas: "CPU", "GPU" or "TPU"."""
    with strategy.scope():
        if tf.distribute.has_strategy():
            device = strategy.extended.worker_devices[0]
            return tf.DeviceSpec.from_string(device).device_type
    return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"


def device_name(strategy: tf.distribute.Strategy) -> str:
    """Returns the name of a strategy's accelerators as their maker sells them, or the processor."""
    kind = device_type(strategy)
    if kind == "GPU":
        gpu = tf.config.list_physical_devices("GPU")[0]
        return tf.config.experimental.get_device_details(gpu).get("device_name", kind)
    return processor_name() if kind == "CPU" else kind


def processor_name() -> str:
    """Returns the name of this machine's processor."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
