"""Instance scores, and whether each instance was found, missed, merged or split."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64, Int32, Int64

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU thresholds of the average precision: 0.50, 0.55 … 0.95 (2018 Data Science Bowl)."""

Outcome = Literal["found", "missed", "merged", "split", "inexact", "invented"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_MATCH = 0.5  # IoU above which an instance has at most one match
_LITTLE = 0.1  # IoU up to which nothing was hit: a background error of TIDE (Bolya et al., 2020)


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

    def drop_small(self, least: int | Float64[np.ndarray, " f"]) -> "Overlaps":
        """Return the overlaps without found instances of fewer pixels, for all or for each."""
        kept = self.area_found >= least
        return Overlaps(self.shared[:, kept], self.area_true, self.area_found[kept])

    def iou(self) -> Float64[np.ndarray, "t f"]:
        """Compute the intersection over union of each pair."""
        union = self.area_true[:, None] + self.area_found - self.shared
        iou: Float64[np.ndarray, "t f"] = self.shared / union
        return iou


@dataclass(frozen=True)
class Outcomes:
    """What happened to each instance of an image, in the order of its `Overlaps`."""

    true: list[Outcome]
    """Of each true instance; never invented."""
    found: list[Outcome]
    """Of each found instance; never missed."""

    def count(self) -> dict[str, int]:
        """Count the true instances of each kind; for `invented`, the found ones."""
        counts = Counter([*self.true, *(kind for kind in self.found if kind == "invented")])
        return {kind: counts[kind] for kind in OUTCOMES}


def count_overlaps(true: Int32[np.ndarray, "h w"], found: Int32[np.ndarray, "h w"]) -> Overlaps:
    """Count the overlaps of two label images.

    0 is background; the other numbers need not be consecutive.
    """
    rows, columns = _renumber(true), _renumber(found)
    shape = int(rows.max(initial=0)) + 1, int(columns.max(initial=0)) + 1
    joint = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    return Overlaps(joint[1:, 1:], joint.sum(axis=1)[1:], joint.sum(axis=0)[1:])


def count_matches(
    true: Int32[np.ndarray, "h w"], found: Int32[np.ndarray, "h w"]
) -> tuple[int, int, float]:
    """Return the number of true instances, of matches (IoU above 0.5), and the summed IoU of these.

    Memory grows with the pixels, not with the pairs of instances, as that of `count_overlaps` does.
    """
    rows, columns = _renumber(true), _renumber(found)
    area_true, area_found = np.bincount(rows), np.bincount(columns)
    pairs, shared = np.unique(rows * len(area_found) + columns, return_counts=True)
    row, column = np.divmod(pairs, len(area_found))
    iou = shared / (area_true[row] + area_found[column] - shared)
    iou = iou[(row > 0) & (column > 0) & (iou > _MATCH)]
    return len(area_true) - 1, len(iou), float(iou.sum())


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
    num_true, num_found = overlaps.shared.shape
    if num_true == 0 and num_found == 0:
        return InstanceScores(0, 0, (1.0,) * len(THRESHOLDS), 1.0, 1.0)
    iou = overlaps.iou()
    matches = [int((iou > threshold).sum()) for threshold in THRESHOLDS]
    return InstanceScores(
        num_true,
        num_found,
        tuple(tp / (num_true + num_found - tp) for tp in matches),
        float(iou[iou > _MATCH].sum() / ((num_true + num_found) / 2)),
        _aggregated_jaccard(overlaps, iou),
    )


def _aggregated_jaccard(overlaps: Overlaps, iou: Float64[np.ndarray, "t f"]) -> float:
    shared, covered = 0, 0
    used = np.zeros(len(overlaps.area_found), dtype=bool)
    for row, area in enumerate(overlaps.area_true):
        best = int(iou[row].argmax()) if len(used) else -1
        if best < 0 or overlaps.shared[row, best] == 0:
            covered += int(area)
            continue
        shared += int(overlaps.shared[row, best])
        covered += int(area + overlaps.area_found[best] - overlaps.shared[row, best])
        used[best] = True
    return shared / (covered + int(overlaps.area_found[~used].sum()))


def classify_instances(overlaps: Overlaps) -> Outcomes:
    """Say what happened to each true and each found instance of an image.

    One instance lies mostly in another if that contains more than half of its pixels. An instance
    is of the first kind that applies:

    - found: its IoU with an instance of the other side is above 0.5.
    - merged: two or more true instances lie mostly in the same found one. These true instances and
      that found one are merged.
    - split: two or more found instances lie mostly in the same true one. That true instance and
      these found ones are split.
    - inexact: its IoU with an instance of the other side is above 0.1.
    - missed, if it is true; invented, if it was found.

    So a nucleus that is swallowed by a large neighbour's instance is merged, although the neighbour
    is found. A fragment beside a matched instance is split, although its nucleus is found.
    """
    shared, area_true, area_found = overlaps
    iou = overlaps.iou()
    match, near = iou > _MATCH, iou > _LITTLE
    in_found, in_true = 2 * shared > area_true[:, None], 2 * shared > area_found
    merger = in_found.sum(axis=0) > 1  # of each found instance
    in_pieces = in_true.sum(axis=1) > 1  # of each true instance
    kinds = ["found", "merged", "split", "inexact"]
    true = [match.any(axis=1), (in_found & merger).any(axis=1), in_pieces, near.any(axis=1)]
    in_pieces_of = (in_true & in_pieces[:, None]).any(axis=0)
    found = [match.any(axis=0), merger, in_pieces_of, near.any(axis=0)]
    return Outcomes(
        np.select(true, kinds, "missed").tolist(), np.select(found, kinds, "invented").tolist()
    )
