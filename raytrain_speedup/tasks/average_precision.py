"""COCO's average precision, by COCO's own code (pycocotools).

Precision over recall at 101 points, at IoU .5, .55, ... .95, the mean over these and over the classes that occur;
objects of all sizes (Lin et al., ECCV 2014, arXiv 1405.0312; cocodataset.org/#detection-eval). Detections of all
images are ranked together, so it is no sum over samples.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

ALL_SIZES = [0, 1e10]
"""Square pixels of an object."""


def average_precision(objects: np.ndarray, found: np.ndarray, *, most: int) -> tuple[float, float]:
    """Mean average precision over all thresholds of IoU, and at .5 alone, in [0, 1]; 0 where there are no objects.

    Args:
        objects: (n, 6), of each its image, label, left, top, right and bottom; a label below 0 is that of a crowd,
            where what is found is neither right nor wrong.
        found: (m, 7), likewise, and the score.
        most: of an image and class that are judged, the surest first.
    """
    from pycocotools.coco import COCO  # of an extra
    from pycocotools.cocoeval import COCOeval

    if not len(objects) or not len(found):
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        truth = COCO()
        truth.dataset = _dataset(objects, np.unique(np.concatenate([objects[:, 0], found[:, 0]])))
        truth.createIndex()
        results = truth.loadRes(np.column_stack([found[:, :1], _as_coco(found), found[:, 6], found[:, 1]]))
        judged = COCOeval(truth, results, "bbox")
        judged.params.areaRng, judged.params.areaRngLbl = [ALL_SIZES], ["all"]
        judged.params.maxDets = [most]
        judged.evaluate()
        judged.accumulate()
    precision = judged.eval["precision"][..., 0, 0]  # (thresholds, recalls, classes); -1: no such object
    means = [part[part > -1].mean() if (part > -1).any() else 0.0 for part in (precision, precision[0])]
    return float(means[0]), float(means[1])


def _as_coco(rows: np.ndarray) -> np.ndarray:
    """Left, top, width and height, (n, 4)."""
    return np.column_stack([rows[:, 2:4], rows[:, 4:6] - rows[:, 2:4]])


def _dataset(objects: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    annotations = [
        {
            "id": number,
            "image_id": int(image),
            "category_id": int(abs(label)),
            "bbox": bbox.tolist(),
            "area": float(bbox[2] * bbox[3]),
            "iscrowd": int(label < 0),
        }
        for number, ((image, label), bbox) in enumerate(
            zip(objects[:, :2], _as_coco(objects), strict=True), start=1
        )
    ]
    categories = {annotation["category_id"] for annotation in annotations}
    return {
        "images": [{"id": int(image)} for image in images],
        "categories": [{"id": category} for category in sorted(categories)],
        "annotations": annotations,
    }
