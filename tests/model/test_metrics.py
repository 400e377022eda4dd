"""Pixel scores equal cases worked by hand and, at every threshold, those of scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from resunet_ray.model import metrics

THEIRS = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "jaccard": jaccard_score,
    "recall": recall_score,
    "precision": precision_score,
}


def test_a_case_worked_by_hand() -> None:
    found = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], np.uint8)
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0]], np.uint8)
    counts = metrics.count_pixels(found, mask)
    assert tuple(int(count) for count in counts) == (2, 1, 1, 4)
    scores = {name: float(value) for name, value in metrics.score_counts(counts).items()}
    assert scores == pytest.approx(
        {"accuracy": 6 / 8, "f1": 4 / 6, "jaccard": 2 / 4, "recall": 2 / 3, "precision": 2 / 3}
    )


def test_scores_equal_those_of_scikit_learn_at_every_threshold() -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((20, 30)) < 0.3).astype(np.uint8)
    probability = np.clip(rng.random((20, 30)) * 0.7 + mask * 0.3, 0, 1).astype(np.float32)
    scores = metrics.score_counts(metrics.counts_by_threshold(metrics.histogram(probability, mask)))
    for position in (0, 40, 127, 200, 254):
        found = (probability >= metrics.THRESHOLDS[position]).astype(np.uint8)
        for name, theirs in THEIRS.items():
            options = {} if name == "accuracy" else {"zero_division": 0}
            assert scores[name][position] == pytest.approx(
                theirs(mask.ravel(), found.ravel(), **options)
            ), (name, position)


def test_empty_images_found_empty_score_one_and_other_ratios_over_zero_score_zero() -> None:
    none, one = np.zeros((2, 3), np.uint8), np.eye(2, 3, dtype=np.uint8)
    empty = metrics.score_counts(metrics.count_pixels(none, none))
    assert {float(value) for value in empty.values()} == {1.0}
    missed = metrics.score_counts(metrics.count_pixels(none, one))
    assert (float(missed["precision"]), float(missed["recall"]), float(missed["f1"])) == (0, 0, 0)


def test_scores_are_per_image_and_pooled_scores_per_pixel() -> None:
    counts = metrics.Counts(*(np.array(values) for values in ((8, 0), (2, 1), (0, 1), (0, 8))))
    f1 = metrics.score_counts(counts)["f1"]
    assert f1.tolist() == pytest.approx([16 / 18, 0])
    assert metrics.pooled_scores(counts)["f1"] == pytest.approx(16 / 20)


def test_histograms_of_parts_add_up_to_that_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random((30, 40), dtype=np.float32)
    mask = (rng.random((30, 40)) < 0.5).astype(np.uint8)
    top = metrics.histogram(probability[:11], mask[:11])
    bottom = metrics.histogram(probability[11:], mask[11:])
    np.testing.assert_array_equal(top + bottom, metrics.histogram(probability, mask))
    assert metrics.histogram(np.ones((2, 3), np.float32), np.ones((2, 3), np.uint8))[1, 255] == 6
