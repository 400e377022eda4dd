"""Scores and outcomes equal cases worked by hand, scores also an independent computation."""

import numpy as np
import pytest
from skimage.measure import label

from resunet_ray.model.matching import (
    THRESHOLDS,
    Outcomes,
    classify_instances,
    count_matches,
    count_overlaps,
    score_instances,
)


def boxes(*where: tuple[int, int, int, int]) -> np.ndarray:
    """A label image of 20×30 with boxes (top, bottom, left, right), numbered with gaps."""
    labels = np.zeros((20, 30), np.int32)
    for number, (top, bottom, left, right) in enumerate(where):
        labels[top:bottom, left:right] = 3 * number + 2
    return labels


def test_a_case_worked_by_hand() -> None:
    """A perfect match, one of IoU 0.8, a missed true instance, and a found one that is not true."""
    true = boxes((0, 4, 0, 5), (6, 10, 0, 5), (12, 15, 0, 5))
    found = boxes((0, 4, 0, 5), (6, 8, 0, 4), (12, 15, 20, 25))
    found[8:10, 0:4] = found[6, 0]  # 16 of 20 pixels: IoU 0.8
    scores = score_instances(count_overlaps(true, found))
    assert (scores.num_true, scores.num_found) == (3, 3)
    # Two matches up to a threshold of 0.75, and one from 0.80 on, which an IoU of 0.8 does not
    # exceed.
    assert dict(zip(THRESHOLDS, scores.ap, strict=True)) == pytest.approx(
        {threshold: (2 / 4 if threshold < 0.8 else 1 / 5) for threshold in THRESHOLDS}
    )
    assert scores.pq == pytest.approx((1 + 0.8) / 3)
    assert scores.aji == pytest.approx((20 + 16) / (20 + 20 + 15 + 15))
    *counts, iou = count_matches(true, found)
    assert counts == [3, 2]
    assert iou == pytest.approx(1 + 0.8)
    assert count_matches(true, np.zeros_like(true)) == (3, 0, 0)
    assert count_matches(np.zeros_like(true), found) == (0, 0, 0)


def test_empty_images_and_perfect_results() -> None:
    none, some = boxes(), boxes((0, 4, 0, 5))
    assert score_instances(count_overlaps(none, none)).pq == 1
    for true, found in ((none, some), (some, none)):
        scores = score_instances(count_overlaps(true, found))
        assert (scores.ap[0], scores.pq, scores.aji) == (0, 0, 0)
    assert score_instances(count_overlaps(some, some)).aji == 1


def test_an_iou_of_exactly_one_half_is_no_match() -> None:
    assert score_instances(count_overlaps(boxes((0, 2, 0, 2)), boxes((0, 1, 0, 2)))).ap[0] == 0


def independent(true: np.ndarray, found: np.ndarray) -> tuple[list[float], float, float]:
    """Compute AP, PQ and AJI from sets of pixels, object by object, as their papers describe."""

    def pixels(labels: np.ndarray) -> list[frozenset[int]]:
        numbers = np.unique(labels[labels > 0])
        return [frozenset(np.flatnonzero(labels == number).tolist()) for number in numbers]

    true_sets, found_sets = pixels(true), pixels(found)
    iou = {
        (i, j): len(a & b) / len(a | b)
        for i, a in enumerate(true_sets)
        for j, b in enumerate(found_sets)
    }
    ap = []
    for threshold in THRESHOLDS:
        tp = sum(value > threshold for value in iou.values())
        ap.append(tp / (tp + len(found_sets) - tp + len(true_sets) - tp))
    matched = [value for value in iou.values() if value > 0.5]
    unmatched = len(true_sets) + len(found_sets) - 2 * len(matched)
    pq = sum(matched) / (len(matched) + unmatched / 2)
    inter, union, used = 0, 0, set()
    for i, a in enumerate(true_sets):
        j = max(range(len(found_sets)), key=lambda j: iou[i, j])
        if not a & found_sets[j]:
            union += len(a)
            continue
        inter, union = inter + len(a & found_sets[j]), union + len(a | found_sets[j])
        used.add(j)
    union += sum(len(b) for j, b in enumerate(found_sets) if j not in used)
    return ap, pq, inter / union


@pytest.mark.parametrize("seed", range(6))
def test_random_cases_agree_with_an_independent_computation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = label(rng.random((24, 31)) < 0.45).astype(np.int32)
    found = np.where(rng.random(true.shape) < 0.85, true, 0).astype(np.int32)
    found[rng.random(true.shape) < 0.02] = true.max() + 1
    ap, pq, aji = independent(true, found)
    scores = score_instances(count_overlaps(true, found))
    assert scores.ap == pytest.approx(ap)
    assert scores.pq == pytest.approx(pq)
    assert scores.aji == pytest.approx(aji)


def test_dropped_instances_score_as_if_they_had_not_been_found() -> None:
    true, found = boxes((0, 4, 0, 5), (6, 10, 0, 5)), boxes((0, 4, 0, 5), (15, 16, 2, 4))
    dropped = count_overlaps(true, found).drop_small(3)
    without = count_overlaps(true, boxes((0, 4, 0, 5)))
    assert score_instances(dropped) == score_instances(without)


BIG = (6, 10, 0, 10)  # 40 pixels


@pytest.mark.parametrize(
    ("true", "found", "outcomes"),
    [
        ([BIG], [BIG], Outcomes(["found"], ["found"])),
        ([BIG], [], Outcomes(["missed"], [])),
        ([], [BIG], Outcomes([], ["invented"])),
        # 4 pixels in common, an IoU of 4 / 76.
        ([BIG], [(6, 10, 9, 19)], Outcomes(["missed"], ["invented"])),
        ([BIG], [(6, 10, 0, 5)], Outcomes(["inexact"], ["inexact"])),
        (
            [(6, 10, 0, 4), (6, 10, 6, 10), (6, 8, 11, 12)],
            [BIG],
            Outcomes(["merged", "merged", "missed"], ["merged"]),
        ),
        (
            [BIG],
            [(6, 10, 0, 4), (6, 10, 6, 10), (6, 10, 10, 12)],
            Outcomes(["split"], ["split", "split", "invented"]),
        ),
        # A match stays found, whatever else lies in it.
        ([(6, 10, 0, 8), (6, 10, 8, 10)], [BIG], Outcomes(["found", "merged"], ["found"])),
        ([BIG], [(6, 10, 0, 8), (6, 10, 8, 10)], Outcomes(["found"], ["found", "split"])),
    ],
)
def test_drawn_nuclei_are_of_the_kind_that_they_show(
    true: list[tuple[int, int, int, int]],
    found: list[tuple[int, int, int, int]],
    outcomes: Outcomes,
) -> None:
    assert classify_instances(count_overlaps(boxes(*true), boxes(*found))) == outcomes


def test_each_true_nucleus_counts_once_and_of_those_found_only_the_invented() -> None:
    kinds = Outcomes(["found", "merged", "merged"], ["found", "merged", "split", "invented"])
    counts = {"found": 1, "missed": 0, "merged": 2, "split": 0, "inexact": 0, "invented": 1}
    assert kinds.count() == counts
