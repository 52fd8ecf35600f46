"""Measures how a run uses its machine: its speed, waiting, the processors and the devices' peak."""

import dataclasses
import math
import time
from collections.abc import Iterable

import keras
import psutil
import tensorflow as tf

RATES = (
    "images_per_second",
    "input_wait_fraction",
    "processor_use",
    "model_flop_utilization",
)
SCOPE = "train_step"  # name scope of what counts as the model's arithmetic
_SECONDS_A_PRODUCT = 0.02
_PRODUCTS = 5
_MUCH_WAITING = 0.1
_BUSY = 0.8  # processors above this have little left for more work


def count_flops(operations: Iterable[tf.Operation]) -> int:
    """Floating-point operations of the convolutions and matrix products in `SCOPE`.

    A multiplication and an addition count as two. Normalization, activations and the optimizer are
    left out, as is usual for this measure; they are a few percent of a ResNet's arithmetic.

    Args:
      operations: of a graph in which each batch has a fixed size.
    """
    return sum(
        _flops(operation)
        for operation in operations
        # TensorFlow does not compute what nothing reads, such as the gradient by the images.
        if SCOPE in operation.name and any(out.consumers() for out in operation.outputs)
    )


def _flops(operation: tf.Operation) -> int:
    if operation.type == "Conv2D":
        out, kernel = operation.outputs[0], operation.inputs[1].shape
    elif operation.type == "Conv2DBackpropInput":
        out, kernel = operation.inputs[2], operation.inputs[1].shape
    elif operation.type == "Conv2DBackpropFilter":
        out, kernel = operation.inputs[2], operation.outputs[0].shape
    elif operation.type == "MatMul":
        inner = operation.inputs[0].shape[0 if operation.get_attr("transpose_a") else 1]
        out, kernel = operation.outputs[0], [inner, 1]
    else:
        return 0
    return 2 * out.shape.num_elements() * math.prod(kernel[:-1])


def measure_peak(strategy: tf.distribute.Strategy) -> float:
    """Measures large matrix products in the run's precision, on all replicas at once: FLOP/s.

    It takes about a second, or longer if a device has to leave a sleep state.
    """
    size = 512
    while True:
        seconds = _seconds_of_product(strategy, size)
        if seconds > _SECONDS_A_PRODUCT or size >= 16384:
            return strategy.num_replicas_in_sync * 2 * size**3 / seconds
        size *= 2


def _seconds_of_product(strategy: tf.distribute.Strategy, size: int) -> float:
    """The shortest of a few products `[size, size]` by `[size, size]`."""

    def draw():
        dtype = keras.config.dtype_policy().compute_dtype
        return tf.cast(tf.random.stateless_uniform([size, size], [0, 0]), dtype)

    def multiply(matrix):
        return tf.matmul(matrix, matrix)

    matrices = tf.function(lambda: strategy.run(draw), autograph=False)()
    run = tf.function(lambda matrices: strategy.run(multiply, args=(matrices,)), autograph=False)
    seconds = []
    for _ in range(1 + _PRODUCTS):  # the first of them is traced
        started = time.perf_counter()
        for result in strategy.experimental_local_results(run(matrices)):
            float(result[0, 0])
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def processor_seconds() -> float:
    """The time that all processors of this machine have worked, for any program, in seconds."""
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts the work for virtual machines twice.
    twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - waiting - twice


@dataclasses.dataclass(frozen=True)
class Usage:
    """The work and the time of some steps."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # of the seconds, for images
    processor_seconds: float = 0.0  # in which processors of this machine worked for any program
    flops: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Usage(*map(sum, pairs))

    def rates(self, peak: float) -> dict[str, float]:
        """Returns the rates of these steps, {name of `RATES`: float}.

        Args:
          peak: FLOP/s, of `measure_peak`.
        """
        values = (
            self.images / self.seconds,
            min(1.0, self.waited / self.seconds),
            min(1.0, self.processor_seconds / self.seconds / (psutil.cpu_count() or 1)),
            self.flops / self.seconds / peak,
        )
        return dict(zip(RATES, values, strict=True))


def what_limits(rates: dict[str, float], peak: float, *, on_cpu: bool, augment_on: str) -> str:
    """Returns in one or two sentences whether the input or the step limits the speed.

    The advice rests on the rates alone: it says what would help only if they show it.

    Args:
      rates: of the run, {name of `RATES`: float}.
      peak: FLOP/s, of `measure_peak`.
      on_cpu: whether the step runs on the processors that also prepare the images.
      augment_on: `--augment_on` of the run.
    """
    waiting, use = rates["input_wait_fraction"], rates["processor_use"]
    if waiting <= _MUCH_WAITING:
        return (
            f"The training step limits this run: it waited for images {waiting:.0%} of the time "
            f"and reached {rates['model_flop_utilization']:.0%} of the {peak / 1e9:.3g} GFLOP/s "
            "that matrix products reach on these devices"
        )
    if waiting > 0.5:
        found = f"The input limits this run: the devices waited for images {waiting:.0%} of the"
    else:
        found = (
            f"The training step takes {1 - waiting:.0%} of the time of this run, and the devices "
            f"waited for images for the rest of the"
        )
    gain = 1 / max(1 - waiting, 0.01)
    times = f"{gain:.{0 if gain >= 10 else 1}f}"
    found += f" time, so no input could make it more than {times} times as fast. "
    if on_cpu:
        shared = (
            f"The processors, which the step and the input share, were busy {use:.0%} of the time"
        )
        return found + (f"{shared}: more of them would help" if use >= _BUSY else shared)
    if use < _BUSY:
        return found + (
            f"The processors were busy only {use:.0%} of the time, so more of them would not help; "
            "the reading of the files may be the limit"
        )
    remedy = ", or --augment_on=device" if augment_on == "host" else ""
    return found + (
        f"The processors were busy {use:.0%} of the time: more of them would help{remedy}"
    )
