"""Instance scores: average precision, panoptic quality and aggregated Jaccard index."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU thresholds of the average precision: 0.50, 0.55 … 0.95 (2018 Data Science Bowl)."""


@dataclass(frozen=True)
class InstanceScores:
    """How well the found instances of an image match the true ones."""

    num_true: int
    num_found: int
    ap: tuple[float, ...]
    """tp / (tp + fp + fn) at each of `THRESHOLDS`."""
    pq: float
    """Panoptic quality: the summed IoU of the matches over the mean number of true and found
    instances (Kirillov et al., 2019, equation 1)."""
    aji: float
    """Aggregated Jaccard index (Kumar et al., 2017, algorithm 1)."""


class Overlaps(NamedTuple):
    """Areas and overlaps of the true and found instances of an image: all that scores need."""

    shared: Int64[np.ndarray, "t f"]
    """Pixels shared by each pair of a true and a found instance."""
    area_true: Int64[np.ndarray, " t"]
    """Pixels of each true instance."""
    area_found: Int64[np.ndarray, " f"]
    """Pixels of each found instance."""

    def drop_small(self, min_area: int) -> "Overlaps":
        """Return the overlaps without found instances of fewer than `min_area` pixels."""
        kept = self.area_found >= min_area
        return Overlaps(self.shared[:, kept], self.area_true, self.area_found[kept])


def count_overlaps(true: Int32[np.ndarray, "h w"], found: Int32[np.ndarray, "h w"]) -> Overlaps:
    """Count the overlaps of two label images.

    0 is background; the other numbers need not be consecutive.
    """
    rows, columns = _renumber(true), _renumber(found)
    shape = int(rows.max(initial=0)) + 1, int(columns.max(initial=0)) + 1
    joint = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    return Overlaps(joint[1:, 1:], joint.sum(axis=1)[1:], joint.sum(axis=0)[1:])


def _renumber(labels: Int32[np.ndarray, "h w"]) -> Int64[np.ndarray, " n"]:
    """Flatten a label image and close the gaps between its numbers."""
    present = np.bincount(labels.ravel()) > 0
    present[0] = False
    numbers = np.cumsum(present)
    renumbered: Int64[np.ndarray, " n"] = np.where(present, numbers, 0)[labels.ravel()]
    return renumbered


def score_instances(overlaps: Overlaps) -> InstanceScores:
    """Score the instances of an image.

    Instances match if their IoU is strictly above the threshold: above one half, none can have two
    matches. If there are neither true nor found instances, all scores are 1.
    """
    shared, area_true, area_found = overlaps
    num_true, num_found = shared.shape
    if num_true == 0 and num_found == 0:
        return InstanceScores(0, 0, (1.0,) * len(THRESHOLDS), 1.0, 1.0)
    union = area_true[:, None] + area_found[None, :] - shared
    iou = shared / union
    matches = [int((iou > threshold).sum()) for threshold in THRESHOLDS]
    return InstanceScores(
        num_true,
        num_found,
        tuple(tp / (num_true + num_found - tp) for tp in matches),
        float(iou[iou > 0.5].sum() / ((num_true + num_found) / 2)),
        _aggregated_jaccard(overlaps, union, iou),
    )


def _aggregated_jaccard(
    overlaps: Overlaps, union: Int64[np.ndarray, "t f"], iou: Float64[np.ndarray, "t f"]
) -> float:
    shared, covered = 0, 0
    used = np.zeros(len(overlaps.area_found), dtype=bool)
    for row, area in enumerate(overlaps.area_true):
        best = int(iou[row].argmax()) if len(used) else -1
        if best < 0 or overlaps.shared[row, best] == 0:
            covered += int(area)
            continue
        shared += int(overlaps.shared[row, best])
        covered += int(union[row, best])
        used[best] = True
    return shared / (covered + int(overlaps.area_found[~used].sum()))
