"""Runs one measurement of accelerator.py, which starts a process for each.

python benchmarks/on_device.py '{"kind": "speed", "flags": {"image_size": 32}, ...}'

The answers are JSON lines, sent one by one, so that a process that runs out of memory has sent its
earlier results. A line `{"ended": why}` is the last one.
"""

import dataclasses
import json
import os
import re
import sys
import time

import measure
import numpy as np

LOSS_STEPS, LOSS_BATCH = 20, 32


def main(text):
    answer = measure.answers()
    arguments = json.loads(text)
    measurement = KINDS[arguments.pop("kind")]
    try:
        for found in measurement(**arguments):
            answer(found)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        answer({"ended": "out of memory"})


def is_out_of_memory(error):
    """Returns whether an error of TensorFlow, XLA or PyTorch reports that memory ran out."""
    text = f"{type(error).__name__}: {error}"
    return bool(re.search("resource_?exhausted|out ?of ?memory|MemoryError", text, re.IGNORECASE))


def losses(flags, weights):
    """Yields the device, then the losses of twenty steps on generated images.

    Args:
      flags: the flags for `ours.build`.
      weights: the file of the initial weights. The first process writes it, because random numbers
        may depend on the device.
    """
    from ours import build, train

    config, strategy, model = build(**flags)
    yield {"device": describe_device()}
    if os.path.exists(weights):
        with np.load(weights) as values:
            for variable, value in zip(model.trainable_variables, values.values(), strict=True):
                variable.assign(value)
    else:
        np.savez(weights, *[variable.numpy() for variable in model.trainable_variables])
    views = drawn_views(LOSS_STEPS * LOSS_BATCH, config.views.image_size)
    steps = train(
        config,
        strategy,
        model,
        batches_from(views, LOSS_BATCH),
        batch_size=LOSS_BATCH,
        num_steps=LOSS_STEPS,
        steps_per_loop=5,
    )
    yield {"losses": [step["loss"] for step in steps]}


def speed(flags, batch_sizes, loops, steps_per_loop, photographs=None):
    """Yields the speed of the run's own loop, one dict for each batch size.

    Args:
      flags: the flags for `ours.build`.
      batch_sizes: global batch sizes, the smallest first.
      loops: the number of measured loops, after one that compiles and warms up.
      steps_per_loop: the number of steps without Python between them.
      photographs: a folder whose files are read, decoded and augmented. None: ready batches from
        memory.
    """
    from ours import build, tf, train  # sets oneDNN's switch before TensorFlow loads

    from simsiam_tf.training import meter

    config, strategy, model = build(**flags)
    peak = meter.measure_peak(strategy)
    device = describe_device()["device"]
    for batch_size in batch_sizes:
        if photographs:
            batches_of = batches_of_photographs(config, photographs, batch_size)
        else:
            batches_of = batches_from(drawn_views(batch_size, config.views.image_size), batch_size)
        if device:
            tf.config.experimental.reset_memory_stats(device)
        num_steps = (1 + loops) * steps_per_loop
        used = meter.Usage()
        for step in train(
            config,
            strategy,
            model,
            batches_of,
            batch_size=batch_size,
            num_steps=num_steps,
            steps_per_loop=steps_per_loop,
        ):
            if step.number == steps_per_loop:
                started = time.perf_counter()
            elif step.number > steps_per_loop:
                used += meter.Usage(batch_size, 0, step.waited, step.flops)
                # The clock is read here, because the loop's graph is freed after the last step.
                seconds = time.perf_counter() - started
        used = dataclasses.replace(used, seconds=seconds)
        memory = tf.config.experimental.get_memory_info(device)["peak"] if device else None
        yield {
            "batch_size": batch_size,
            **used.rates(peak),
            "flops_per_second": used.flops / used.seconds,
            "measured_peak_flops": peak,
            "replicas": strategy.num_replicas_in_sync,
            "peak_gb": memory and memory / 1e9,
        }


def nearest(bank, queries, features, k):
    """Yields the speed of the kNN evaluation, from features in memory to votes."""
    import simsiam_tf  # noqa: F401  (before TensorFlow)
    from simsiam_tf.evaluation import knn

    rng = np.random.default_rng(0)
    bank_features = rng.standard_normal((bank, features), np.float32)
    labels = rng.integers(0, 1000, bank)
    query_features = rng.standard_normal((queries, features), np.float32)
    for _ in range(2):  # the first call is the warm-up
        started = time.perf_counter()
        knn.class_votes(bank_features, labels, query_features, 1000, k, 0.1).numpy()
        seconds = time.perf_counter() - started
    yield {"queries_per_second": queries / seconds}


def pytorch(backbone, stem, image_size, batch_sizes, steps, compiled, on_cpu):
    """Yields the speed of PyTorch's step: channels last, bfloat16 by autocast, ready views."""
    try:
        import torch
        from interop import torch_copy
    except ImportError:
        yield {"ended": "PyTorch is not installed"}
        return
    if not (on_cpu or torch.cuda.is_available()):
        yield {"ended": "PyTorch sees no GPU"}
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")

    def loss_of(state, first, second):
        with torch.autocast(device, torch.bfloat16):
            return torch_copy.views_loss(state, first, second)

    state = torch_copy.channels_last(torch_copy.initial_state(backbone, stem))
    state = {name: value.to(device) for name, value in state.items()}
    for batch_size in batch_sizes:
        views = torch.from_numpy(drawn_views(batch_size, image_size)).to(device)
        views = (views.float() / 127.5 - 1).permute(0, 1, 4, 2, 3)  # NHWC in memory
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        num_steps = 2 * steps
        training = torch_copy.train(
            state,
            [views] * num_steps,
            [0.05] * num_steps,
            0.05,
            torch.compile(loss_of) if compiled else loss_of,
        )
        for number, _ in enumerate(training, start=1):  # the generator has waited for the loss
            if number == steps:
                started = time.perf_counter()
            elif number > steps:
                seconds = time.perf_counter() - started
        memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
        yield {
            "batch_size": batch_size,
            "images_per_second": steps * batch_size / seconds,
            "peak_gb": memory,
        }


def describe_device():
    """Returns the kind, the name and the number of the devices that TensorFlow uses."""
    import tensorflow as tf

    for kind in ("TPU", "GPU"):
        count = len(tf.config.list_logical_devices(kind))
        if count:
            name = kind
            if kind == "GPU":
                details = tf.config.experimental.get_device_details(
                    tf.config.list_physical_devices("GPU")[0]
                )
                name = details.get("device_name", kind)
            return {"kind": kind, "name": name, "count": count, "device": f"{kind}:0"}
    return {"kind": "CPU", "name": measure.machine()["processor"], "count": 1, "device": None}


def drawn_views(count, size):
    """Returns two views of each image, uint8 `[2, count, size, size, 3]`.

    The images are patchworks of 4 x 4 colours, and the second view is darker. Images of noise are
    not suitable: after pooling they are all alike, and normalization then amplifies rounding.
    """
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    side = -(-size // 4)
    images = patches.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
    return np.stack([images, images // 2 + 64])


def batches_from(views, batch_size):
    """Returns batches for `ours.train` that go through the views in order, repeatedly."""
    import tensorflow as tf

    def batches_of(context):
        share = batch_size // context.num_replicas_in_sync
        images = {"views": tuple(views), "index": np.arange(len(views[0]))}
        shares = tf.data.Dataset.from_tensor_slices(images).batch(share, drop_remainder=True)
        return shares.repeat().prefetch(2)

    return batches_of


def batches_of_photographs(config, folder, batch_size):
    """Returns batches for `ours.train` from the run's own pipeline over JPEG files."""
    from simsiam_tf.data import datasets, pipeline, views

    draw_photographs(folder, max(256, batch_size))
    source = datasets.load("folder", folder, "train")

    def batches_of(context):
        return pipeline.training_batches(
            source,
            views.build_views(config.views, 2),
            batch_size=batch_size,
            seed=0,
            first_step=0,
            last_step=1_000_000,
            context=context,
        )

    return batches_of


def draw_photographs(folder, count):
    """Writes JPEG files of 500 x 375, smooth with some grain, of about a photograph's size."""
    import tensorflow as tf

    os.makedirs(folder, exist_ok=True)
    with tf.device("CPU:0"):
        for number in range(count):
            path = os.path.join(folder, f"{number}.jpeg")
            if os.path.exists(path):
                continue
            rng = np.random.default_rng(number)
            colours = rng.uniform(0, 255, (12, 16, 3)).astype(np.float32)
            image = tf.image.resize(colours, (375, 500), "bicubic")
            image += rng.normal(0, 8, image.shape).astype(np.float32)
            image = tf.saturate_cast(image, tf.uint8)
            tf.io.write_file(path, tf.io.encode_jpeg(image, quality=90))


KINDS = {"losses": losses, "speed": speed, "nearest": nearest, "pytorch": pytorch}

if __name__ == "__main__":
    main(sys.argv[1])
