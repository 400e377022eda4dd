"""The order of an epoch depends on seed and epoch alone, and workers share it without loss."""

from collections import Counter

import numpy as np
import pytest

from resunet_ray.data.dataset import Dataset, Span, open_dataset, plan_epoch
from resunet_ray.errors import InputError

DATASET = Dataset(
    "nowhere",
    "d",
    None,
    {"train": 23},
    {"train-00000.parquet": [5, 5, 1], "train-00001.parquet": [5, 5, 2]},
)


def rows(spans: list[Span]) -> list[int]:
    return [span.group.first + row for span in spans for row in span.wanted]


def plan(
    *,
    epoch: int = 0,
    seed: int = 0,
    rank: int = 0,
    workers: int = 1,
    size: int = 20,
    weights: np.ndarray | None = None,
) -> list[int]:
    return rows(
        plan_epoch(
            DATASET,
            "train",
            epoch=epoch,
            seed=seed,
            rank=rank,
            workers=workers,
            size=size,
            weights=weights,
        )
    )


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_an_epoch_without_overlap_and_equally(workers: int) -> None:
    shares = [plan(rank=rank, workers=workers) for rank in range(workers)]
    assert {len(share) for share in shares} == {20 // workers}
    assert sorted(row for share in shares for row in share) == sorted(plan())
    assert max(Counter(plan()).values()) == 1


def test_the_order_repeats_with_the_seed_and_changes_with_the_epoch() -> None:
    assert plan(epoch=3) == plan(epoch=3)
    assert plan(epoch=3) != plan(epoch=4)
    assert plan(seed=1) != plan(seed=2)


def test_the_remainder_left_out_changes_from_epoch_to_epoch() -> None:
    seen = Counter(row for epoch in range(60) for row in plan(epoch=epoch))
    assert sorted(seen) == list(range(23))
    assert min(seen.values()) > 40


def test_fewer_images_than_a_batch_are_repeated_not_dropped() -> None:
    assert Counter(Counter(plan(size=46)).values()) == {2: 23}


def test_weights_decide_how_often_a_row_is_seen() -> None:
    weights = np.where(np.arange(23) < 3, 5.0, 1.0)
    seen = Counter(
        row for epoch in range(200) for row in plan(epoch=epoch, size=35, weights=weights)
    )
    assert sum(seen.values()) == 200 * 35
    for row in range(23):
        assert seen[row] / 200 == pytest.approx(weights[row], abs=0.15)


def test_an_empty_split_is_refused_with_the_list_of_splits(dataset_uri: str) -> None:
    with pytest.raises(
        InputError,
        match=r"has no images in split 'holdout': found test \(4\), train \(12\), val \(4\)",
    ):
        open_dataset(dataset_uri, needs=("train", "holdout"))
