"""Training batches: images drawn by weight, and their crops mixed in a buffer and stacked."""

import itertools
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from resunet_ray.config import TrainConfig
from resunet_ray.data.dataset import Dataset, plan_epoch
from resunet_ray.data.splits import TRAIN
from resunet_ray.errors import InputError
from resunet_ray.train.crops import Crop, stream_crops

_FIRST_BUFFER = 64.0  # crops to wait for before the first is drawn
_BALANCE = 0.4  # exponent of the inverse share of a modality, where it is None
_BUFFER_GROWTH = 0.5  # crops that the buffer gains with each draw


class Batch(NamedTuple):
    """Crops, stacked."""

    image: UInt8[np.ndarray, "n s s 3"]
    mask: UInt8[np.ndarray, "n s s"]
    targets: UInt8[np.ndarray, "n 5 s s"] | None
    """What the heads learn; None if the network has none."""


def epoch_size(dataset: Dataset, config: TrainConfig) -> int:
    """Return the crops per epoch over all workers: one per training image, less a remainder.

    An epoch is whole batches, and at least one.
    """
    return max(1, dataset.splits[TRAIN] // config.batch_size) * config.batch_size


def require_modalities(dataset: Dataset, config: TrainConfig) -> None:
    """Refuse to balance modalities if that is asked for and the data set has none.

    Raises:
        InputError: it has none.
    """
    if config.balance_modalities and not _has_modalities(dataset):
        raise InputError(
            f"--balance-modalities {config.balance_modalities}: {dataset.uri} has no modalities. "
            "Prepare it with --metadata, a CSV with the columns `id` and `modality`"
        )


def draw_weights(dataset: Dataset, config: TrainConfig) -> np.ndarray | None:
    """Return how often each training image is drawn relative to the others; None: equally often.

    The weight is the image's area to the power of `balance_area`, times the inverse share of its
    modality to the power of `balance_modalities`.

    Raises:
        InputError: modalities are to be balanced, and the data set has none.
    """
    weights = np.ones(dataset.splits[TRAIN])
    if exponent := config.area_exponent:
        height = dataset.read_column(TRAIN, "height").to_numpy(np.float64)
        area = height * dataset.read_column(TRAIN, "width").to_numpy()
        # One crop shows all of an image that is no larger than the crop.
        weights *= np.maximum(area, config.crop**2) ** exponent
    require_modalities(dataset, config)
    balance = config.balance_modalities
    if balance is None:
        balance = _BALANCE if _has_modalities(dataset) else 0.0
    if balance:
        modality = dataset.read_column(TRAIN, "modality").fillna("")
        share = modality.map(modality.value_counts(normalize=True)).to_numpy(np.float64)
        weights *= share**-balance
    return None if np.ptp(weights) == 0 else weights


def _has_modalities(dataset: Dataset) -> bool:
    return bool(dataset.read_column(TRAIN, "modality").fillna("").any())


def stream_batches(
    dataset: Dataset,
    config: TrainConfig,
    *,
    epochs: range,
    rank: int,
    workers: int,
    weights: np.ndarray | None,
) -> Generator[tuple[int, Batch]]:
    """Yield one worker's batches for some epochs, each with its epoch.

    Crops of different epochs never mix, so that each epoch sees each image as often as planned.
    """
    size = epoch_size(dataset, config)
    spans = (
        span
        for epoch in epochs
        for span in plan_epoch(
            dataset,
            TRAIN,
            epoch=epoch,
            seed=config.seed,
            rank=rank,
            workers=workers,
            size=size,
            weights=weights,
        )
    )
    crops = stream_crops(dataset, spans, config)
    share = config.batch_size // workers
    waiting: list[Crop] = []
    for crop in _mix(crops, size=config.shuffle_buffer, seed=[config.seed, rank]):
        waiting.append(crop)
        if len(waiting) == share:
            yield crop.epoch, _stack(waiting)
            waiting = []
    assert not waiting, f"{len(waiting)} crops are left over: epochs are whole batches"


def _stack(crops: list[Crop]) -> Batch:
    targets = [crop.targets for crop in crops if crop.targets is not None]
    return Batch(
        np.stack([crop.image for crop in crops]),
        np.stack([crop.mask for crop in crops]),
        np.stack(targets) if targets else None,
    )


def _mix(crops: Iterator[Crop], *, size: int, seed: list[int]) -> Iterator[Crop]:
    """Yield crops in random order, drawn from a buffer that is emptied at the end of each epoch.

    The buffer starts small and grows with each draw, so that the first batch need not wait until
    it is full.
    """
    for epoch, members in itertools.groupby(crops, key=lambda crop: crop.epoch):
        # Seeded by epoch, so that an epoch's order does not depend on where a run was resumed.
        rng = np.random.default_rng([*seed, epoch])
        buffer: list[Crop] = []
        target = _FIRST_BUFFER
        for crop in members:
            buffer.append(crop)
            if len(buffer) >= min(size, int(target)):
                target += _BUFFER_GROWTH
                yield _draw(buffer, rng)
        while buffer:
            yield _draw(buffer, rng)


def _draw(buffer: list[Crop], rng: np.random.Generator) -> Crop:
    chosen = int(rng.integers(len(buffer)))
    buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
    return buffer.pop()
