"""A picture of images with their true boxes and the detected ones."""

import itertools
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np

from simsiam_tf.detection.precision import Objects

_SHOWN = 8
_COLUMNS = 4
_MIN_CONFIDENCE = 0.5


def draw(
    path: str,
    examples: Iterable[dict],
    true: Sequence[Objects],
    found: Sequence[Objects],
    class_names: Sequence[str],
) -> None:
    """Draws the first eight images of a split with their true and detected boxes.

    Args:
      path: the image file to write.
      examples: dicts with `image`, `[H, W, 3]` uint8, as in `voc.Split`.
      true: the annotated objects of each image. Their boxes are dashed.
      found: the detections in each image. Detections with a confidence of at least 0.5 are drawn
        with class name and confidence.
      class_names: the names of all classes, by label.
    """
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    shown = list(zip(itertools.islice(examples, _SHOWN), true, found, strict=False))
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3 * columns, 3 * rows), layout="constrained", squeeze=False
    )
    colors = pyplot.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for axis in axes.flat:
        axis.axis("off")
    for axis, (example, objects, detections) in zip(axes.flat, shown, strict=False):
        axis.imshow(np.asarray(example["image"]))
        for left, top, right, bottom in objects.boxes:
            size = right - left, bottom - top
            axis.add_patch(Rectangle((left, top), *size, fill=False, color="white", ls="--"))
        for (left, top, right, bottom), label, confidence in zip(*detections, strict=True):
            if confidence < _MIN_CONFIDENCE:
                continue
            color = colors[label % len(colors)]
            size = right - left, bottom - top
            axis.add_patch(Rectangle((left, top), *size, fill=False, color=color, lw=2))
            text = f"{class_names[label]} {confidence:.2f}"
            axis.text(
                left, top, text, color="white", backgroundcolor=color, fontsize=7, va="bottom"
            )
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
