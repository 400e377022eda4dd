"""Training batches: crops that Ray Data's tasks cut and augment, mixed in a buffer, stacked for one worker."""

import itertools
from collections.abc import Generator, Iterator

import cv2
import numpy as np

from resunet_ray.config import TrainConfig
from resunet_ray.data.augment import augment, crop_at_random
from resunet_ray.data.dataset import Dataset, Row, plan_epoch
from resunet_ray.data.images import decode_stored
from resunet_ray.data.splits import TRAIN
from resunet_ray.data.stream import stream_spans
from resunet_ray.errors import InputError
from resunet_ray.intensity import stretch

_FIRST_BUFFER = 64.0  # crops to wait for before the first is drawn
_BUFFER_GROWTH = 0.5  # crops that the buffer gains with each draw
_PORTION_BYTES = 2**27  # what Ray Data makes at once for one worker: 512 crops of 256×256

Batch = tuple[np.ndarray, np.ndarray]
"""image uint8 (n, s, s, 3), mask uint8 (n, s, s)."""


def epoch_size(dataset: Dataset, config: TrainConfig) -> int:
    """Crops of one epoch over all workers: the training images, short of a remainder smaller than a batch."""
    return max(1, dataset.splits[TRAIN] // config.batch_size) * config.batch_size


def portion_rows(config: TrainConfig) -> int:
    """Crops that Ray Data makes at once for one worker; up to twice as many wait in the object store."""
    return max(1, _PORTION_BYTES // (4 * (config.preprocess.resize or config.crop) ** 2))


def require_modalities(dataset: Dataset, config: TrainConfig) -> None:
    """Refuses to balance modalities of data that knows none.

    Raises:
        InputError: it does not.
    """
    if config.balance_modalities and not dataset.read_column(TRAIN, "modality").fillna("").any():
        raise InputError(
            f"--balance-modalities {config.balance_modalities}: {dataset.uri} knows no modalities. Prepare it with "
            "--metadata, a CSV with columns `id` and `modality`"
        )


def draw_weights(dataset: Dataset, config: TrainConfig) -> np.ndarray | None:
    """How often each training image is drawn, relative to the others; None: equally.

    Its area to the power of `balance_area`, times the inverse share of its modality to the power of `balance_modalities`.

    Raises:
        InputError: modalities are to be balanced and the data knows none.
    """
    weights = np.ones(dataset.splits[TRAIN])
    if exponent := config.area_exponent:
        area = (
            dataset.read_column(TRAIN, "height").to_numpy(np.float64)
            * dataset.read_column(TRAIN, "width").to_numpy()
        )
        weights *= (
            np.maximum(area, config.crop**2) ** exponent
        )  # one crop shows all of a small image
    if config.balance_modalities:
        require_modalities(dataset, config)
        modality = dataset.read_column(TRAIN, "modality").fillna("")
        share = modality.map(modality.value_counts(normalize=True)).to_numpy(np.float64)
        weights *= share**-config.balance_modalities
    return None if np.ptp(weights) == 0 else weights


def stream_batches(
    dataset: Dataset,
    config: TrainConfig,
    *,
    epochs: range,
    rank: int,
    workers: int,
    weights: np.ndarray | None,
) -> Generator[tuple[int, Batch]]:
    """The batches of one worker for some epochs, each with its epoch.

    An epoch's crops never mix with another's, so that each epoch sees each image as often as planned.
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
    blocks = stream_spans(
        dataset,
        spans,
        columns=["image", "mask"],
        transform=Crop(config),
        portion=portion_rows(config),
    )
    share = config.batch_size // workers
    waiting: list[Row] = []
    for row in _mix(_rows(blocks), size=config.shuffle_buffer, seed=[config.seed, rank]):
        waiting.append(row)
        if len(waiting) == share:
            yield (
                int(row["epoch"]),
                (np.stack([r["image"] for r in waiting]), np.stack([r["mask"] for r in waiting])),
            )
            waiting = []
    assert not waiting, f"{len(waiting)} crops are left over: epochs are whole batches"


class Crop:
    """One stored row → training crops, the same for the same seed, epoch, row and draw."""

    def __init__(self, config: TrainConfig) -> None:
        self.size = config.preprocess.resize or config.crop
        self.resize = config.preprocess.resize
        self.config = config.augment
        self.intensity = config.preprocess.intensity
        self.seed = config.seed

    def __call__(self, row: Row, *, epoch: int, index: int, draws: int) -> Iterator[Row]:
        """Decodes once, resizes or crops, augments."""
        cv2.setNumThreads(1)  # Ray runs one task on each CPU
        image, mask = decode_stored(row["image"]), decode_stored(row["mask"]) // 255
        if self.intensity == "percentiles":
            image = stretch(image)
        if self.resize is not None:
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
            mask = (
                cv2.resize(
                    mask.astype(np.float32), (self.size, self.size), interpolation=cv2.INTER_LINEAR
                )
                > 0.5
            ).astype(np.uint8)
        for draw in range(draws):
            rng = np.random.default_rng([self.seed, epoch, index, draw])
            if self.config.enabled:
                crop, truth = augment(image, mask, size=self.size, config=self.config, rng=rng)
            else:
                crop, truth = crop_at_random(image, mask, size=self.size, rng=rng)
            yield {"image": crop, "mask": truth, "epoch": epoch}


def _rows(blocks: Iterator[dict[str, np.ndarray]]) -> Iterator[Row]:
    """Single rows, copied: a view would keep its whole block alive while it waits in the buffer."""
    for columns in blocks:
        for number in range(len(columns["epoch"])):
            yield {name: values[number].copy() for name, values in columns.items()}


def _mix(rows: Iterator[Row], *, size: int, seed: list[int]) -> Iterator[Row]:
    """The rows in random order, drawn from a buffer that is emptied at the end of each epoch.

    The buffer starts small and grows with each draw, so that the first batch need not wait until it is full.
    """
    for epoch, members in itertools.groupby(rows, key=lambda row: int(row["epoch"])):
        rng = np.random.default_rng(
            [*seed, epoch]
        )  # an epoch's order is the same wherever a run was resumed
        buffer: list[Row] = []
        target = _FIRST_BUFFER
        for row in members:
            buffer.append(row)
            if len(buffer) >= min(size, int(target)):
                target += _BUFFER_GROWTH
                yield _draw(buffer, rng)
        while buffer:
            yield _draw(buffer, rng)


def _draw(buffer: list[Row], rng: np.random.Generator) -> Row:
    chosen = int(rng.integers(len(buffer)))
    buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
    return buffer.pop()
