"""Training crops: cut and augmented on the CPUs by Ray Data's tasks, ahead of training."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import ray.data
from jaxtyping import Int32, UInt8

from resunet_ray.config import TrainConfig
from resunet_ray.data.augment import augment, crop_at_random
from resunet_ray.data.dataset import Dataset, RowGroup, Span, StoredImage, StoredPair, read_span
from resunet_ray.data.targets import NUM_BYTES, compute_targets, leave_unknown
from resunet_ray.intensity import stretch
from resunet_ray.tasks import Columns, map_ahead, map_numbers

_STORE_SHARE = 1 / 32  # of the object store, for one portion of crops
_PORTION_BYTES = 2**26, 2**30  # the smallest and largest portion
_FIRST_BYTES = 2**25  # of the first portion, so that training starts early
_TASK_CROPS = 64  # after which a task takes no more spans, so that small data sets use all CPUs


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
    """Return how many crops Ray Data makes at once for one worker; a large store holds more.

    Up to twice as many wait in the object store.
    """
    low, high = _PORTION_BYTES
    share = _STORE_SHARE * ray.cluster_resources().get("object_store_memory", 0)
    return max(1, int(min(max(low, share), high)) // crop_bytes(config))


def stream_crops(dataset: Dataset, spans: Iterable[Span], config: TrainConfig) -> Iterator[Crop]:
    """Yield the crops of some spans, in the order of the spans.

    Ray Data makes one portion while the previous one is consumed, and rests when both are ready.
    One Ray task makes all crops of a portion from one row group, so that a portion of several
    epochs decodes each image less often. A single Ray Data set over all spans would feed as well,
    but in Ray 2.60 its executor never sleeps while it waits for a slow consumer: measured in a
    training process on two cores, it took 60% of one core, and training ran at half its speed.
    """

    def materialise(portion: list[Span]) -> tuple[list[Span], ray.data.Dataset]:
        tasks = _plan_tasks(portion)

        def cut(number: int) -> Columns:
            return _to_columns(list(_cut_spans(dataset, tasks[number], config)))

        data = map_numbers(cut, count=len(tasks))
        data.context.execution_options.preserve_order = True
        return portion, data.materialize()

    with ThreadPoolExecutor(max_workers=1) as pool:
        first = _FIRST_BYTES // crop_bytes(config)
        portions = _split(spans, first=first, size=portion_rows(config))
        for portion, data in map_ahead(pool, materialise, portions, depth=2):
            yield from _read_in_order(data, portion)
            del data  # or the object store would keep it until the next portion is ready


def _split(spans: Iterable[Span], *, first: int, size: int) -> Iterator[list[Span]]:
    """Divide spans into portions of `size` crops or a little more; the first is smaller."""
    portion: list[Span] = []
    least = min(first, size)
    for span in spans:
        portion.append(span)
        if _count_crops(portion) >= least:
            yield portion
            portion, least = [], size
    if portion:
        yield portion


def _plan_tasks(portion: list[Span]) -> list[list[Span]]:
    """Gather spans of the same row group, which one task reads."""
    tasks: list[list[Span]] = []
    latest: dict[RowGroup, list[Span]] = {}
    for span in portion:
        task = latest.get(span.group)
        if task is None or _count_crops(task) >= _TASK_CROPS:
            task = latest[span.group] = []
            tasks.append(task)
        task.append(span)
    return tasks


def _count_crops(spans: list[Span]) -> int:
    return sum(len(span.wanted) for span in spans)


def _cut_spans(dataset: Dataset, spans: list[Span], config: TrainConfig) -> Iterator[Crop]:
    """Yield the crops of some spans of one row group, each of whose images is decoded once."""
    cv2.setNumThreads(1)  # Ray runs one task on each CPU
    rows = tuple(sorted({row for span in spans for row in span.wanted}))
    kind = StoredImage if config.model.heads else StoredPair
    pairs = read_span(dataset, replace(spans[0], wanted=rows), kind=kind)
    cuts: dict[tuple[Span, int], list[Crop]] = {}
    for row, pair in zip(rows, pairs, strict=True):
        image, truth = _decode(pair, config)
        for span in spans:
            seeds = (
                [config.seed, span.epoch, pair.index, n] for n in range(span.wanted.count(row))
            )
            cuts[span, row] = [
                _build_crop(*_cut(image, truth, config, seed=seed), config, epoch=span.epoch)
                for seed in seeds
            ]
    for span in spans:
        for row in dict.fromkeys(span.wanted):
            yield from cuts[span, row]


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
    seed: list[int],
) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s s"] | Int32[np.ndarray, "s s"]]:
    size, rng = config.preprocess.resize or config.crop, np.random.default_rng(seed)
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


def _read_in_order(data: ray.data.Dataset, portion: list[Span]) -> Iterator[Crop]:
    """Yield copies: a view in the shuffle buffer would keep its whole block alive."""
    rows = [
        (block, row)
        for block in data.iter_batches(batch_size=None, batch_format="numpy")
        for row in range(len(block["epoch"]))
    ]
    start: dict[Span, int] = {}
    cut = 0
    for spans in _plan_tasks(portion):
        for span in spans:
            start[span] = cut
            cut += len(span.wanted)
    for span in portion:
        for block, row in rows[start[span] : start[span] + len(span.wanted)]:
            yield Crop(
                image=block["image"][row].copy(),
                mask=block["mask"][row].copy(),
                targets=block["targets"][row].copy() if "targets" in block else None,
                epoch=int(block["epoch"][row]),
            )
