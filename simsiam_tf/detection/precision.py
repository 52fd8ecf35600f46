"""Average precision as COCO has it, by pycocotools."""

import contextlib
import io
import typing

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class Objects(typing.NamedTuple):
    """What is in an image, or what was found in it."""

    boxes: np.ndarray  # [n, 4]: left, top, right, bottom in pixels
    labels: np.ndarray  # [n] int
    marks: np.ndarray  # [n]: whether VOC calls it difficult; of what was found, the confidence


def average_precision(true, found, class_names):
    """COCO's AP, averaged over IoU of 0.5 to 0.95, and at 0.5 and 0.75.

    Objects that VOC calls difficult count neither as found nor as missed.

    Args:
      true: an `Objects` for each image; one object or more is not difficult.
      found: the same, at most 100 objects an image.
      class_names: of all classes; those without an object in `true` are left out of the mean.

    Returns:
      {"AP": …, "AP50": …, "AP75": …, "AP_by_class": {name: AP}}, in percent.
    """
    # pycocotools counts from one: an object of the number 0 would be one that nothing matches.
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(1, len(true) + 1)],
        "categories": [
            {"id": label, "name": name} for label, name in enumerate(class_names, start=1)
        ],
        "annotations": [],
    }
    rows = [[1, 0, 0, 0, 0, 0, 1]]  # a box of no size and confidence: pycocotools must have one
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
    with contextlib.redirect_stdout(io.StringIO()):  # it has much to say
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(np.array(rows)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # IoU, recall, class, area (the first: all), detections an image (the last: 100); -1: no object.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = {
        name: _percent(precision[:, :, label].mean())
        for label, name in enumerate(class_names)
        if precision[0, 0, label] > -1
    }
    names = ("AP", "AP50", "AP75")
    summary = {name: _percent(evaluation.stats[index]) for index, name in enumerate(names)}
    return summary | {"AP_by_class": by_class}


def _percent(share):
    return round(100 * float(share), 2)
