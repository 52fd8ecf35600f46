"""Measures how far this project is from the reference; prints the tables of docs/parity.md.

python benchmarks/parity.py [networks|images]

`networks` compares this project and PyTorch with the authors' numbers (tests/fixtures). PyTorch
also runs in other ways (one thread, channels last, a weight changed by 1e-15), which shows how far
the reference is from itself. `images` compares each operation with Pillow on scikit-learn's
photographs. The program needs requirements-dev.txt and takes ten minutes on two cores.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests", "tests/methods", "tests/interop")]

import simsiam_tf  # noqa: F401 (chooses the backend before Keras loads)

import keras  # isort: skip
import numpy as np
import tensorflow as tf
import torch
import torch_copy
from PIL import Image, ImageEnhance
from reference import Reference, load_weights
from sklearn.datasets import load_sample_image

from simsiam_tf import config as config_lib
from simsiam_tf import schema
from simsiam_tf.data import kernels, ops
from simsiam_tf.interop import naming
from simsiam_tf.methods.build import build_model
from simsiam_tf.optimization import optimizers


def main(parts):
    if "networks" in parts:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        for backbone in ("resnet18", "resnet50"):
            compare_networks(backbone)
    if "images" in parts:
        compare_images()


def compare_networks(backbone):
    reference = Reference(backbone)
    print(f"\n{backbone}, float64\n")
    columns = [f"loss {step}" for step in range(5)] + ["final/norm", "final/first", "features"]
    print(f"| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    threads = torch.get_num_threads()
    rows = {
        "this project": lambda: train_here(reference),
        "PyTorch": lambda: train_pytorch(reference),
        "PyTorch, conv1 times 1 + 1e-15": lambda: train_pytorch(reference, factor=1 + 1e-15),
        "PyTorch, channels last": lambda: train_pytorch(reference, channels_last=True),
        "PyTorch, one thread": lambda: train_pytorch(reference, threads=1),
    }
    for name, train in rows.items():
        losses, tensors, features = train()
        torch.set_num_threads(threads)
        print(
            f"| {name} | {' | '.join(deviations(reference, losses, tensors, features))} |",
            flush=True,
        )


def deviations(reference, losses, tensors, features):
    """Returns the relative deviations from the fixture: of each loss, and the largest by kind."""
    numbers = reference.numbers
    found = list(np.abs(np.array(losses) / numbers["losses"] - 1))
    found.append(
        max(
            abs(np.linalg.norm(tensor) / numbers[f"final/norm/{name}"] - 1)
            for name, tensor in tensors.items()
        )
    )
    found.append(
        max(
            relative(tensor.ravel()[:4], numbers[f"final/first/{name}"])
            for name, tensor in tensors.items()
        )
    )
    found.append(relative(features, numbers["final/eval_features"]))
    return [f"{value:.0e}" for value in found]


def relative(got, expected):
    """Returns ‖got − expected‖ / ‖expected‖."""
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def train_here(reference):
    settings = reference.settings
    values = schema.defaults(config_lib.PretrainConfig) | {
        "backbone": settings["arch"],
        "projection_dim": settings["dim"],
        "prediction_hidden_dim": settings["pred_dim"],
        "batch_size": settings["batch"],
        "weight_decay": settings["weight_decay"],
        "base_learning_rate": settings["predictor_learning_rate"] * 256 / settings["batch"],
    }
    config = schema.build(config_lib.PretrainConfig, values)
    model, optimizer = build_model(config, tf.distribute.get_strategy())
    optimizer._learning_rate = optimizers.EpochRates(settings["learning_rates"], 1)
    load_weights(model, reference)
    train_step = tf.function(model.train_step, autograph=False)
    views = reference.views()
    losses = [float(train_step({"views": (pair[0], pair[1])})["loss"]) for pair in views]
    variables = naming.model_variables(model)
    tensors = {name: naming.to_torch(value.numpy()) for name, value in variables.items()}
    return losses, tensors, model(tf.constant(views[0, 0])).numpy()


def train_pytorch(reference, factor=1.0, channels_last=False, threads=None):
    settings = reference.settings
    torch.set_num_threads(threads or torch.get_num_threads())
    shapes = torch_copy.simsiam_shapes(settings["arch"], settings["dim"], settings["pred_dim"])
    state = {n: torch.from_numpy(reference.weight(n, shape)) for n, shape in shapes.items()}
    state["encoder.conv1.weight"] *= factor
    views = torch.from_numpy(reference.views().transpose(0, 1, 2, 5, 3, 4))
    views = views if channels_last else views.contiguous()
    steps = torch_copy.train(
        state, views, settings["learning_rates"], settings["predictor_learning_rate"]
    )
    losses = [loss for loss, _ in steps]
    features = torch_copy.features(state, views[0, 0], prefix="encoder.")
    return losses, {name: value.numpy() for name, value in state.items()}, features.numpy()


def compare_images():
    """Prints the mean absolute difference from Pillow, in levels of 255."""
    cases = {
        "brightness": (ops.adjust_brightness, ImageEnhance.Brightness),
        "contrast": (ops.adjust_contrast, ImageEnhance.Contrast),
        "saturation": (ops.adjust_saturation, ImageEnhance.Color),
    }
    print(
        "\n| mean difference from Pillow, levels of 255 | china.jpg | flower.jpg |\n|---|---|---|"
    )
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    rows = {
        f"{name} 0.6, 1.4": [
            np.mean([levels(ours, pillow, image, factor) for factor in (0.6, 1.4)])
            for image in photographs
        ]
        for name, (ours, pillow) in cases.items()
    }
    rows["grey"] = [
        difference(
            ops.grayscale(as_float(image)), Image.fromarray(image).convert("L").convert("RGB")
        )
        for image in photographs
    ]
    rows["hue 0.1"] = [
        difference(ops.adjust_hue(as_float(image), 0.1), pillow_hue(image, 0.1))
        for image in photographs
    ]
    rows["crop and resize to 224"] = [crop_difference(image) for image in photographs]
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")


def levels(ours, pillow, image, factor):
    return difference(ours(as_float(image), factor), pillow(Image.fromarray(image)).enhance(factor))


def as_float(image):
    return tf.constant(image, tf.float32) / 255


def difference(got, expected):
    return np.abs(np.asarray(got) * 255 - np.asarray(expected, np.float64)).mean()


def pillow_hue(image, shift):
    """Returns torchvision's adjust_hue of a PIL image, which shifts the hue byte modulo 256."""
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    hue = Image.fromarray(np.asarray(hue) + np.uint8(int(shift * 255)), "L")
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def crop_difference(image):
    uniform = tf.random.stateless_uniform([1, ops.BOX_DRAWS], [0, 1])
    boxes = ops.random_boxes(image.shape, uniform, 0.2).numpy()
    ((top, left, height, width),) = boxes.tolist()
    crop = Image.fromarray(image).crop((left, top, left + width, top + height))
    expected = crop.resize((224, 224), Image.Resampling.BILINEAR)
    return difference(kernels.crops(image, boxes, 224)[0] / 255, expected)


if __name__ == "__main__":
    main(sys.argv[1:] or ["networks", "images"])
