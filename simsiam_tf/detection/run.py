"""The steps of `simsiam_tf.detection.transfer`: checks, training, measurement and results."""

import importlib.metadata
import itertools
import json
import math
import os
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import schema
from simsiam_tf.detection import inputs, picture, precision, retinanet, voc
from simsiam_tf.detection.settings import TransferConfig
from simsiam_tf.evaluation import feature_cache
from simsiam_tf.export import saved_model
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress

_CHECKED_IMAGES = 4
_WEIGHT_DECAY = 1e-4
_CLIP_NORM = 10.0  # bound of the norm of all gradients together
_WARMUP_FRACTION = 0.05  # of all steps


def run(config: TransferConfig) -> None:
    """Trains a detector from an encoder, measures its AP and writes the results to the workdir.

    Args:
      config: the settings of the transfer.

    Raises:
      UserError: the workdir has results, the encoder or the data set cannot be used, or the loss
        becomes infinite or NaN.
    """
    _check_workdir(config.workdir)
    keras.utils.set_random_seed(config.seed)
    encode, _ = saved_model.load(config.encoder)
    resnet = saved_model.load_resnet(config.encoder)
    backbone = retinanet.build_backbone(resnet, config.image_size)
    splits = config.train_split, config.eval_split
    train, test = voc.load(config.dataset, config.data_dir, splits)
    if train.num_images < config.batch_size:
        raise UserError(
            f"--batch_size must be at most the {train.num_images} images of {train.name}. "
            f"Received: {config.batch_size}"
        )
    for split in (train, test):
        voc.check(split)
    difference = _check_features(backbone, encode, train, config.image_size)
    detector = retinanet.build_detector(backbone, len(train.class_names))
    _train(detector, train, config)
    average_precision, true, found = _measure(detector, test, config)
    detector.compile()  # discards the optimizer, so that its state is not saved
    detector.save(os.path.join(config.workdir, "detector.keras"))
    path = os.path.join(config.workdir, "detections.png")
    picture.draw(path, test.examples(None), true, found, test.class_names)
    packages = ("keras-hub", "pycocotools")
    result = {
        **average_precision,
        "classes": train.class_names,
        "num_train": train.num_images,
        "num_test": test.num_images,
        "feature_difference": difference,
        "settings": schema.flatten(config),
        "encoder_sha256": feature_cache.hash_of_folder(os.path.abspath(config.encoder)),
        "versions": saved_model.versions()
        | {name: importlib.metadata.version(name) for name in packages},
    }
    with open(os.path.join(config.workdir, "results.json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def _check_workdir(workdir: str) -> None:
    """Checks, before the training, that results can be written and would replace no others."""
    try:
        os.makedirs(workdir, exist_ok=True)
        names = os.listdir(workdir)
    except OSError as error:
        raise UserError(
            f"--workdir must be a folder that can be written to ({error.strerror}). "
            f"Received: {workdir}"
        ) from error
    if "results.json" in names:
        raise UserError(f"--workdir must be a folder without results.json. Received: {workdir}")


def _check_features(
    backbone: keras_hub.models.ResNetBackbone,
    encode: Callable[[tf.Tensor], tf.Tensor],
    train: voc.Split,
    size: int,
) -> float:
    images = [
        tf.image.resize(example["image"], (size, size))
        for example in train.examples(None).take(_CHECKED_IMAGES)
    ]
    difference = retinanet.check_features(backbone, encode, tf.stack(images))
    logging.info(
        "KerasHub's ResNet gives the encoder's features on %d images: the largest difference is "
        "%.1e of the largest feature",
        len(images),
        difference,
    )
    return difference


def _train(
    detector: keras_hub.models.RetinaNetObjectDetector, train: voc.Split, config: TransferConfig
) -> None:
    steps = train.num_images // config.batch_size * config.epochs
    warmup = math.ceil(_WARMUP_FRACTION * steps)
    learning_rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=config.learning_rate, warmup_steps=warmup
    )
    # The losses of the RetinaNet paper, with its alpha, are sums over classes and coordinates.
    # Keras takes means, which the loss weights turn into sums.
    detector.compile(
        keras.optimizers.AdamW(
            learning_rate, weight_decay=_WEIGHT_DECAY, global_clipnorm=_CLIP_NORM
        ),
        classification_loss=keras.losses.BinaryFocalCrossentropy(
            apply_class_balancing=True, from_logits=True, reduction="sum"
        ),
        loss_weights={"cls_logits": len(train.class_names), "bbox_regression": 4},
        jit_compile=False,  # XLA would compile again for every new number of boxes
    )
    logging.info("Training on %s, %d steps", train.name, steps)

    def check_and_note(epoch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"The detection loss must be finite in epoch {epoch + 1}; lower --learning_rate. "
                f"Received: {config.learning_rate}"
            )
        progress.note(epoch=epoch + 1, loss=logs["loss"])

    with Progress(steps, "training", "step") as progress:
        detector.fit(
            inputs.training_batches(train, config),
            epochs=config.epochs,
            shuffle=False,  # the data set shuffles
            verbose=0,
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_epoch_end=check_and_note,
                    on_train_batch_end=lambda batch, logs: progress.update(),
                )
            ],
        )


def _measure(
    detector: keras_hub.models.RetinaNetObjectDetector, test: voc.Split, config: TransferConfig
) -> tuple[dict[str, Any], list[precision.Objects], list[precision.Objects]]:
    """Returns the AP on a split, then the annotated objects and the detections of each image."""
    size, batch_size = config.image_size, config.batch_size
    detect = retinanet.build_detect(detector, batch_size)
    examples = inputs.evaluation_examples(test, size).as_numpy_iterator()
    true, found = [], []
    with Progress(test.num_images, "detecting", "image") as progress:
        while batch := list(itertools.islice(examples, batch_size)):
            images = np.zeros((batch_size, size, size, 3), np.float32)
            images[: len(batch)] = [example["input"] for example in batch]
            detections = detect(images)
            for index, example in enumerate(batch):
                true.append(
                    precision.Objects(*(example[key] for key in ("boxes", "labels", "difficult")))
                )
                found.append(_objects(example, *(values[index] for values in detections.values())))
            progress.update(len(batch))
    result = precision.average_precision(true, found, test.class_names)
    logging.info("%s: AP %.1f, AP50 %.1f", test.name, result["AP"], result["AP50"])
    return result, true, found


def _objects(
    example: dict[str, np.ndarray], boxes: np.ndarray, confidence: np.ndarray, labels: np.ndarray
) -> precision.Objects:
    """Returns the detections in an image, with boxes in pixels of the original image."""
    height, width, _ = example["image"].shape
    valid = labels >= 0
    boxes = np.clip(boxes[valid] / example["scale"], 0, [width, height, width, height])
    return precision.Objects(boxes, labels[valid], confidence[valid])
