"""A picture of what was found in some images."""

import itertools

import matplotlib
import numpy as np

_SHOWN = 8
_COLUMNS = 4
_MIN_CONFIDENCE = 0.5


def draw(path, examples, true, found, class_names):
    """Draws the first images of a split, with what is there and what was found.

    Args:
      path: the picture's file.
      examples: a data set of dicts with `image`, as of `voc.Split`.
      true: a `precision.Objects` for each image; drawn dashed.
      found: the same; drawn with name and confidence, from a confidence of one half on.
      class_names: of all classes.
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
    colors = pyplot.get_cmap("tab20").colors
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
