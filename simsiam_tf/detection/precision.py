"""COCO's average precision, computed by pycocotools."""

import contextlib
import io
import typing
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class Objects(typing.NamedTuple):
    """The annotated objects of an image, or the detections in it."""

    boxes: np.ndarray  # [n, 4]: left, top, right, bottom in pixels
    labels: np.ndarray  # [n] int
    marks: np.ndarray  # [n]: bool, VOC's "difficult", for annotations; confidence for detections


def average_precision(
    true: Sequence[Objects], found: Sequence[Objects], class_names: Sequence[str]
) -> dict[str, typing.Any]:
    """Returns COCO's AP, averaged over IoU of 0.5 to 0.95, and AP at IoU 0.5 and 0.75.

    Objects that VOC marks as difficult count neither as found nor as missed.

    Args:
      true: the annotated objects of each image. At least one object must not be difficult.
      found: the detections in each image, at most 100 per image.
      class_names: the names of all classes, by label. The mean leaves out classes without an object
        in `true`.

    Returns:
      {"AP": …, "AP50": …, "AP75": …, "AP_by_class": {name: AP}}, in percent.
    """
    # IDs start at one, because pycocotools treats an object with the ID 0 as unmatched.
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(1, len(true) + 1)],
        "categories": [
            {"id": label, "name": name} for label, name in enumerate(class_names, start=1)
        ],
        "annotations": [],
    }
    rows = [[1, 0, 0, 0, 0, 0, 1]]  # pycocotools needs at least one detection: size 0, confidence 0
    for image, (objects, detections) in enumerate(zip(true, found, strict=True), start=1):
        for box, label, difficult in zip(*objects, strict=True):
            corner, size = np.split(np.asarray(box, float), 2)
            size = size - corner
            truth.dataset["annotations"].append(
                {
                    "id": len(truth.dataset["annotations"]) + 1,
                    "image_id": image,
                    "category_id": int(label) + 1,
                    "bbox": [*corner, *size],
                    "area": size.prod(),
                    "iscrowd": int(difficult),
                }
            )
        for (left, top, right, bottom), label, confidence in zip(*detections, strict=True):
            rows.append([image, left, top, right - left, bottom - top, confidence, label + 1])
    with contextlib.redirect_stdout(io.StringIO()):  # hides the printed progress
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(np.array(rows)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Axes: IoU, recall, class, area (first: all), detections per image (last: 100).
    # A class without objects has -1.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = {
        name: _percent(precision[:, :, label].mean())
        for label, name in enumerate(class_names)
        if precision[0, 0, label] > -1
    }
    names = ("AP", "AP50", "AP75")
    summary = {name: _percent(evaluation.stats[index]) for index, name in enumerate(names)}
    return summary | {"AP_by_class": by_class}


def _percent(fraction: float) -> float:
    return round(100 * float(fraction), 2)
