"""Training crops: cut and augmented on the CPUs by Ray Data's tasks, ahead of training."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import ray.data
from jaxtyping import Int32, UInt8

from resunet_ray.config import TrainConfig
from resunet_ray.data.augment import augment, crop_at_random
from resunet_ray.data.dataset import Dataset, Span, StoredImage, StoredPair, read_span
from resunet_ray.data.targets import NUM_BYTES, compute_targets, leave_unknown
from resunet_ray.intensity import stretch
from resunet_ray.tasks import Columns, map_ahead, map_numbers

_PORTION_BYTES = 2**27  # of crops that Ray Data makes at once for one worker: 512 of 256×256
_FIRST_PORTION = 1 / 8  # size of the first portion relative to the others


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One random view of a training image."""

    image: UInt8[np.ndarray, "s s 3"]
    mask: UInt8[np.ndarray, "s s"]
    """0 or 1."""
    targets: UInt8[np.ndarray, "5 s s"] | None
    """What the heads learn, as in `data.targets`; None if the network has none."""
    epoch: int


def crop_bytes(config: TrainConfig) -> int:
    """Return the bytes of one crop: its image, its mask and what the heads learn."""
    channels = 3 + 1 + (NUM_BYTES if config.model.heads else 0)
    return int(channels * (config.preprocess.resize or config.crop) ** 2)


def portion_rows(config: TrainConfig) -> int:
    """Return how many crops Ray Data makes at once for one worker.

    Up to twice as many wait in the object store.
    """
    return max(1, _PORTION_BYTES // crop_bytes(config))


def stream_crops(dataset: Dataset, spans: Iterable[Span], config: TrainConfig) -> Iterator[Crop]:
    """Yield the crops of some spans, in the order of the spans; each span is read by one Ray task.

    Ray Data makes one portion while the previous one is consumed, and rests when both are ready.
    The first portion is small, so that training starts early. A single Ray Data set over all
    spans would do the same, but in Ray 2.60 its executor never sleeps while it waits for a slow
    consumer: measured in a training process on two cores, it took 60% of one core, and training
    ran at half its speed.
    """

    def materialise(portion: list[Span]) -> ray.data.Dataset:
        def cut(number: int) -> Columns:
            return _to_columns(list(_cut_span(dataset, portion[number], config)))

        data = map_numbers(cut, count=len(portion))
        data.context.execution_options.preserve_order = True
        return data.materialize()

    with ThreadPoolExecutor(max_workers=1) as pool:
        portions = _split(spans, size=portion_rows(config))
        for data in map_ahead(pool, materialise, portions, depth=2):
            yield from _from_blocks(data)
            del data  # or the object store would keep it until the next portion is ready


def _split(spans: Iterable[Span], *, size: int) -> Iterator[list[Span]]:
    """Divide spans into portions of `size` crops or a little more; the first is smaller."""
    portion: list[Span] = []
    least = size * _FIRST_PORTION
    for span in spans:
        portion.append(span)
        if sum(len(member.wanted) for member in portion) >= least:
            yield portion
            portion, least = [], size
    if portion:
        yield portion


def _cut_span(dataset: Dataset, span: Span, config: TrainConfig) -> Iterator[Crop]:
    """Decode each image of a span once, and cut as many crops from it as the plan wants."""
    cv2.setNumThreads(1)  # Ray runs one task on each CPU
    draws = Counter(span.wanted)
    kind = StoredImage if config.model.heads else StoredPair
    for pair in read_span(dataset, replace(span, wanted=tuple(draws)), kind=kind):
        image, truth = _decode(pair, config)
        for draw in range(draws[pair.index - span.group.first]):
            rng = np.random.default_rng([config.seed, span.epoch, pair.index, draw])
            yield _build_crop(*_cut(image, truth, config, rng=rng), config, epoch=span.epoch)


def _decode(
    pair: StoredPair, config: TrainConfig
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"]]:
    """Return the image and the truth: its mask, or the numbers of its nuclei for the heads."""
    image, mask = pair.decode()
    labels = pair.decode_labels() if isinstance(pair, StoredImage) else None
    if config.preprocess.intensity == "percentiles":
        image = stretch(image)
    if (side := config.preprocess.resize) is not None:
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        share = cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
        mask = (share > 0.5).astype(np.uint8)
        if labels is not None:
            labels = cv2.resize(labels, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, mask if labels is None else labels


def _cut(
    image: UInt8[np.ndarray, "h w 3"],
    truth: UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"],
    config: TrainConfig,
    *,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s s"] | Int32[np.ndarray, "s s"]]:
    size = config.preprocess.resize or config.crop
    if config.augment.enabled:
        return augment(image, truth, size=size, config=config.augment, rng=rng)
    return crop_at_random(image, truth, size=size, rng=rng)


def _build_crop(
    image: UInt8[np.ndarray, "s s 3"],
    truth: UInt8[np.ndarray, "s s"] | Int32[np.ndarray, "s s"],
    config: TrainConfig,
    *,
    epoch: int,
) -> Crop:
    if not config.model.heads:
        return Crop(image=image, mask=truth, targets=None, epoch=epoch)
    known = truth.dtype == np.int32
    return Crop(
        image=image,
        mask=(truth != 0).astype(np.uint8) if known else truth,
        targets=compute_targets(truth) if known else leave_unknown(*truth.shape),
        epoch=epoch,
    )


def _to_columns(crops: list[Crop]) -> Columns:
    names = ["image", "mask", *(["targets"] if crops[0].targets is not None else [])]
    columns = {name: np.stack([getattr(crop, name) for crop in crops]) for name in names}
    return {**columns, "epoch": np.array([crop.epoch for crop in crops])}


def _from_blocks(data: ray.data.Dataset) -> Iterator[Crop]:
    """Yield copies: a view in the shuffle buffer would keep its whole block alive."""
    for block in data.iter_batches(batch_size=None, batch_format="numpy"):
        for number, epoch in enumerate(block["epoch"]):
            targets = block["targets"][number].copy() if "targets" in block else None
            yield Crop(
                image=block["image"][number].copy(),
                mask=block["mask"][number].copy(),
                targets=targets,
                epoch=int(epoch),
            )
