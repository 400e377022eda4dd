"""The actor: one lot's whole way, from its images' bytes to one file of regions.

    read and decode, in threads ahead ─► network, several images in a batch ─► mask, instances, sums, in threads behind

A lot is one call, and two calls at a time share the threads, so that the network need not wait between lots. A lot's file
appears whole or not at all, and always under the same name, so a lot that is done twice, because a node was thought dead, is
still there once. A bad image is a row that says so.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, UInt8

from resunet_ray import __version__, storage
from resunet_ray.bundle import Bundle, load_bundle
from resunet_ray.config import SegmentConfig
from resunet_ray.data.ahead import map_ahead
from resunet_ray.data.archives import Entry
from resunet_ray.data.images import decode_image, decode_labels, name_format
from resunet_ray.errors import InputError, ResourceError, RunError
from resunet_ray.schema import PLAN, REGIONS
from resunet_ray.segment import attempts
from resunet_ray.segment.plan import read_lot
from resunet_ray.segment.region import Row, describe_region

logger = logging.getLogger(__name__)

REGIONS_FOLDER = "regions"

CALLS = 2  # lots that an actor works on at a time

_POST_THREADS = 2
_TILE_PIXELS = 2**18
"""Images share a call of the network until they fill its batch with so many pixels a tile."""


@dataclass(frozen=True)
class Job:
    """What every actor of a run needs to know."""

    run_id: str
    folder: str
    """The run's own, with its plan."""
    output: str
    config: SegmentConfig
    bundle_digest: str
    lots: tuple[int, ...]
    """Those that are not done; a task is the number of one among them."""
    gpu: bool
    """Whether each actor has one."""
    threads: int
    """Cores that compute the network, where there is no GPU."""


@dataclass
class _Sample:
    """An image on its way."""

    row: Row
    """Its row of the plan, and what is known of its region so far."""
    image: UInt8[np.ndarray, "h w 3"] | None = None
    truth: UInt8[np.ndarray, "h w"] | None = None
    probability: Float32[np.ndarray, "h w"] | None = field(default=None, repr=False)


class Segmenter:
    """Holds the network; call it with numbers of `Job.lots`."""

    def __init__(self, job: Job) -> None:
        """Loads the bundle and runs its self-test.

        Raises:
            RunError: the network gives another output here than where it was saved.
        """
        cv2.setNumThreads(1)  # the threads below are enough
        self._job = job
        if not job.gpu:
            # Each core its own image. Cores that share one meet after every layer, and there the slowest, which was just reading
            # or writing, keeps the others waiting.
            torch.set_num_threads(1)
        self._networks = 1 if job.gpu else job.threads
        self._model = ThreadPoolExecutor(self._networks, thread_name_prefix="model")
        self._bundle = _load(job, device=torch.device("cuda" if job.gpu else "cpu"))
        own = self._bundle.info.instances
        self._instances = own if job.config.threshold is None else replace(own, threshold=job.config.threshold)
        self._batch_size = job.config.batch_size or (16 if self._bundle.device.type == "cuda" else 1)
        self._readers = ThreadPoolExecutor(job.config.readers, thread_name_prefix="read")
        self._post = ThreadPoolExecutor(_POST_THREADS, thread_name_prefix="post")
        self._calls, self._wary = threading.Semaphore(CALLS), threading.Lock()

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Segments lots, and returns one row for each: what is in its file, and how long it took."""
        return pa.Table.from_pylist([self.segment_lot(self._job.lots[number]) for number in batch["id"]])

    def segment_lot(self, lot: int) -> Row:
        """Segments one lot and writes its file."""
        start = time.time()
        planned = read_lot(self._job.folder, lot).to_pylist()
        if attempts.note_lot(self._job.folder, lot) < attempts.TRUSTED:
            with self._calls:
                rows = self._segment(planned)
        else:
            with self._wary, ExitStack() as alone:  # so that no other lot's image is blamed
                for _ in range(CALLS):
                    alone.enter_context(self._calls)
                rows = [self._segment_warily(image, lot=lot, number=number) for number, image in enumerate(planned)]
        table = pa.Table.from_pylist(rows, schema=REGIONS)
        storage.write_table(lot_uri(self._job.output, self._job.run_id, lot), table, rows_per_group=64)
        failed = [row for row in rows if row["status"] == "failed"]
        return {
            "lot": lot,
            "regions": len(rows),
            "failed": len(failed),
            "pixels": sum(row["pixels"] or 0 for row in rows),
            "begun": start,
            "ended": time.time(),
            **{name: sum(row[name] for row in rows) for name in ("read_seconds", "model_seconds", "post_seconds")},
        }

    def _segment(self, planned: list[Row]) -> list[Row]:
        samples = map_ahead(self._readers, self._read, planned, depth=2 * self._job.config.readers)
        groups = _groups(samples, pixels=self._batch_size * _TILE_PIXELS)
        computed = itertools.chain.from_iterable(map_ahead(self._model, self._predict, groups, depth=2 * self._networks))
        return list(map_ahead(self._post, self._describe, computed, depth=4 * _POST_THREADS))

    def _segment_warily(self, planned: Row, *, lot: int, number: int) -> Row:
        """Alone, and with a note of it: an image over which the process dies is not begun again."""
        with attempts.note_image(self._job.folder, lot, number) as deaths:
            if deaths < attempts.BLAMED:
                (row,) = self._segment([planned])
            else:
                row = _begin_row(planned, job=self._job)
                message = f"the process died {deaths} times over {planned['image_uri']}: out of memory, or a fault in a decoder"
                _fail(row, stage="crash", error=RunError(message))
        return row

    def _read(self, planned: Row) -> _Sample:
        """Reads and decodes one image; what goes wrong becomes part of its row."""
        start = time.perf_counter()
        sample = _Sample(_begin_row(planned, job=self._job))
        stage = "read"
        try:
            if planned["error_type"] is None:
                entry = Entry(planned["image_uri"], planned["member"], planned["member_offset"], planned["source_bytes"] or 0)
                content = entry.read()
                stage = "decode"
                image = decode_image(content, name=entry.name, max_pixels=self._job.config.max_pixels)
                sample.row |= {"format": name_format(content), "height": image.shape[0], "width": image.shape[1]}
                stage = "mask"
                sample.truth = _read_truth(planned["mask_uri"], shape=image.shape[:2])
                sample.image = image
        except ResourceError:
            raise  # the storage is away, which is not this image's fault: the run ends here, and goes on when it is back
        except Exception as error:  # noqa: BLE001 (decoders raise what they like)
            _fail(sample.row, stage=stage, error=error)
        sample.row["read_seconds"] = time.perf_counter() - start
        return sample

    def _predict(self, group: list[_Sample]) -> list[_Sample]:
        """The probabilities of several images at once; when that fails, of each alone, so that one takes none with it."""
        good = [sample for sample in group if sample.image is not None]
        if not good:
            return group
        start = time.perf_counter()
        try:
            probabilities = self._bundle.predict(
                [sample.image for sample in good if sample.image is not None],
                batch_size=self._batch_size,
                flips=self._job.config.flips,
                precision=self._job.config.precision,
            )
        except (RuntimeError, MemoryError) as error:
            if self._bundle.device.type == "cuda" and not isinstance(error, torch.OutOfMemoryError):
                logger.critical("the GPU is of no more use to this process: %s", error)
                os._exit(1)  # Ray replaces it
            if len(good) > 1:
                for sample in good:
                    self._predict([sample])
            else:
                _fail(good[0].row, stage="model", error=error)
            return group
        seconds = time.perf_counter() - start
        pixels = sum(probability.size for probability in probabilities)
        for sample, probability in zip(good, probabilities, strict=True):
            sample.probability = probability
            sample.row["model_seconds"] = seconds * probability.size / pixels
        return group

    def _describe(self, sample: _Sample) -> Row:
        start = time.perf_counter()
        row = sample.row
        if sample.probability is not None and sample.image is not None:
            try:
                keep: dict[str, Any] = {"labels": self._job.config.labels, "probabilities": self._job.config.probabilities}
                pixels = sample.probability, sample.image
                row |= describe_region(*pixels, config=self._instances, name=row["image_uri"], truth=sample.truth, **keep)
                row["status"] = "ok"
            except Exception as error:  # noqa: BLE001 (whatever it is, the other images are none the worse)
                _fail(row, stage="post", error=error)
        row["post_seconds"] = time.perf_counter() - start
        return row


def _load(job: Job, *, device: torch.device) -> Bundle:
    bundle = load_bundle(job.config.bundle, device=device)
    if bundle.digest != job.bundle_digest:
        raise RunError(f"the bundle {job.config.bundle} was replaced while the run went on: run it again")
    bundle.self_test()
    return bundle


def lot_uri(output: str, run_id: str, lot: int) -> str:
    """Where the regions of a lot are."""
    return storage.join(output, REGIONS_FOLDER, run_id, f"{lot:06d}.parquet")


def _groups(samples: Iterable[_Sample], *, pixels: int) -> Iterator[list[_Sample]]:
    """Consecutive images that go through the network in one call."""
    group: list[_Sample] = []
    held = 0
    for sample in samples:
        size = 0 if sample.image is None else sample.image.shape[0] * sample.image.shape[1]
        if group and held + size > pixels:
            yield group
            group, held = [], 0
        group.append(sample)
        held += size
    if group:
        yield group


def _begin_row(planned: Row, *, job: Job) -> Row:
    row: Row = dict.fromkeys(REGIONS.names)
    row |= {name: planned[name] for name in PLAN.names if name in row}
    row |= {
        "region_id": f"{planned['image_id']}-0",
        "region_index": 0,
        "y": 0,
        "x": 0,
        "scale_to_level0": 1.0,
        "status": "failed" if planned["error_type"] else None,
        "read_seconds": 0.0,
        "model_seconds": 0.0,
        "post_seconds": 0.0,
        "run_id": job.run_id,
        "bundle_digest": job.bundle_digest,
        "config_digest": job.config.digest,
        "code_version": __version__,
    }
    return row


def _fail(row: Row, *, stage: str, error: Exception) -> None:
    message = storage.mask_credentials(str(error)) or type(error).__name__
    row |= {"status": "failed", "error_stage": stage, "error_type": type(error).__name__, "error_message": message}


def _read_truth(uri: str | None, *, shape: tuple[int, int]) -> UInt8[np.ndarray, "h w"] | None:
    if uri is None:
        return None
    values = decode_labels(Entry(uri).read(), name=uri)
    if values.shape != shape:
        raise InputError(f"{uri} is {values.shape[0]} x {values.shape[1]}: expected {shape[0]} x {shape[1]}, as its image")
    return (values > 0).astype(np.uint8)
