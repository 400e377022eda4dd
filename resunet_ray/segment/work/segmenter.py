"""The actor: one chunk's whole way, from its images' bytes to one file of regions.

    read and decode, in threads ahead ─► network, several images in a batch ─► mask, instances, sums, in threads behind

A chunk is one call, and two calls at a time share the threads, so that the network need not wait between chunks. A chunk's file
appears whole or not at all, and always under the same name, so a chunk that is done twice, because a node was thought dead, is
still there once. A bad image is a row that says so.
"""

import itertools
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8

from resunet_ray import monitoring, storage
from resunet_ray.bundle import Bundle, load_bundle
from resunet_ray.cluster import count_cores, is_lost, this_node
from resunet_ray.data.ahead import map_ahead
from resunet_ray.data.archives import Entry
from resunet_ray.data.images import decode_image, decode_labels, name_format
from resunet_ray.data.slides import Slide
from resunet_ray.errors import ImageError, InputError, ResourceError, RunError
from resunet_ray.intensity import measure_range
from resunet_ray.model.tiling import Box
from resunet_ray.schema import REGIONS
from resunet_ray.segment import layout
from resunet_ray.segment.planning.plan import read_chunk
from resunet_ray.segment.planning.survey import stage_slide
from resunet_ray.segment.rows import LEVELS, Row, fail, is_slide
from resunet_ray.segment.work.job import Job
from resunet_ray.segment.work.region import describe_image
from resunet_ray.segment.work.sample import Sample, group_samples
from resunet_ray.segment.work.slide_chunk import Held, SlideChunk
from resunet_ray.storage import crashes

logger = logging.getLogger(__name__)

CALLS = 2  # chunks that an actor works on at a time

_POST_THREADS = 2
_TILE_PIXELS = 2**18
"""Images share a call of the network until they fill its batch with so many pixels a tile."""


class Segmenter:
    """Holds the network; call it with numbers of `Job.chunks`."""

    def __init__(self, job: Job) -> None:
        """Loads the bundle and runs its self-test.

        Raises:
            ResourceError: a GPU is expected, and torch finds none.
            RunError: the network gives another output here than where it was saved.
        """
        cv2.setNumThreads(1)  # the threads below are enough
        self._job, self._cache = job, storage.Cache.of(job.config)
        self._notes = crashes.Notes(job.folder, job.session, node=this_node(), is_lost=is_lost)
        if not job.gpu:
            # Each core its own image. Cores that share one meet after every layer, and there the slowest, which was just reading
            # or writing, keeps the others waiting.
            torch.set_num_threads(1)
        self._networks = 1 if job.gpu else job.threads or count_cores()
        self._model = ThreadPoolExecutor(self._networks, thread_name_prefix="model")
        self._bundle = _load(job, device=torch.device("cuda" if job.gpu else "cpu"))
        own = self._bundle.info.instances
        self._instances = (
            own if job.config.threshold is None else replace(own, threshold=job.config.threshold)
        )
        self._batch_size = job.config.batch_size or (
            16 if self._bundle.device.type == "cuda" else 1
        )
        self._readers = ThreadPoolExecutor(job.config.readers, thread_name_prefix="read")
        self._post = ThreadPoolExecutor(_POST_THREADS, thread_name_prefix="post")
        self._calls, self._wary = threading.Semaphore(CALLS), threading.Lock()
        pools = {
            "model": self._model,
            "post": self._post,
        }  # they do not say in public how much waits for them
        self._shown = monitoring.show_waiting(
            job.watched, {stage: pool._work_queue.qsize for stage, pool in pools.items()}
        )

    def close(self) -> None:
        """Ends its threads. An actor's end with its process."""
        self._shown()
        for pool in (self._readers, self._model, self._post):
            pool.shutdown()

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Segments chunks, and returns one row for each: what is in its file, and how long it took."""
        return pa.Table.from_pylist(
            [self.segment_chunk(self._job.chunks[number]) for number in batch["id"]]
        )

    def segment_chunk(self, chunk: int) -> Row:
        """Segments one chunk and writes its file."""
        start = time.time()
        planned = read_chunk(self._job.folder, chunk).to_pylist()
        if self._notes.note_chunk(chunk) < crashes.TRUSTED:
            with self._calls:
                rows = self._segment(planned)
        else:
            with self._wary, ExitStack() as alone:  # so that no other chunk's image is blamed
                for _ in range(CALLS):
                    alone.enter_context(self._calls)
                rows = [
                    self._segment_warily(image, chunk=chunk, number=number)
                    for number, image in enumerate(planned)
                ]
        table = pa.Table.from_pylist(rows, schema=REGIONS)
        storage.write_table(
            layout.chunk_uri(self._job.output, self._job.run_id, chunk), table, rows_per_group=64
        )
        outcomes = Counter(
            (row["status"], row["error_stage"] or "", row["error_type"] or "") for row in rows
        )
        return {
            "chunk": chunk,
            "outcomes": json.dumps([(*outcome, regions) for outcome, regions in outcomes.items()]),
            "pixels": sum(row["pixels"] or 0 for row in rows),
            "networks": self._networks,
            "begun": start,
            "ended": time.time(),
            **{
                name: sum(row[name] for row in rows)
                for name in ("read_seconds", "model_seconds", "post_seconds")
            },
        }

    def _segment(self, planned: list[Row]) -> list[Row]:
        if planned[0]["num_regions"] and is_slide(planned[0]):
            return self._segment_slide(planned)
        samples = map_ahead(self._readers, self._read, planned, depth=2 * self._job.config.readers)
        return list(
            map_ahead(self._post, self._describe, self._compute(samples), depth=4 * _POST_THREADS)
        )

    def _compute(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Samples through the network, several at once."""
        groups = group_samples(samples, pixels=self._batch_size * _TILE_PIXELS)
        return itertools.chain.from_iterable(
            map_ahead(self._model, self._predict, groups, depth=2 * self._networks)
        )

    def _segment_slide(self, planned: list[Row]) -> list[Row]:
        """Regions of one slide."""
        rows = [self._job.begin_row(row) for row in planned]
        try:
            with (
                stage_slide(planned[0], config=self._job.config) as path,
                closing(Slide(path, name=rows[0]["image_uri"])) as slide,
            ):
                chunk = SlideChunk.of(
                    planned,
                    slide,
                    preprocess=self._bundle.info.preprocess,
                    side=self._job.config.region,
                )
                tiles = map_ahead(
                    self._readers,
                    partial(_read_tile, slide, chunk),
                    chunk.tiles(),
                    depth=2 * self._job.config.readers,
                )
                describe = partial(self._describe_region, slide, chunk, rows)
                return list(
                    map_ahead(
                        self._post,
                        describe,
                        chunk.gather(self._compute(tiles)),
                        depth=_POST_THREADS,
                    )
                )
        except (InputError, MemoryError) as error:  # it was there when it was planned
            for row in rows:
                fail(row, stage="open", error=error)
            return rows

    def _describe_region(
        self, slide: Slide, chunk: SlideChunk, rows: list[Row], ready: tuple[int, Held]
    ) -> Row:
        number, held = ready
        row, start = rows[number], time.perf_counter()

        def compute(tiles: list[Box]) -> Held:
            samples = [_read_tile(slide, chunk, tile) for tile in tiles]
            return {
                tile: self._model.submit(self._predict, [sample]).result()[0]
                for tile, sample in zip(tiles, samples, strict=True)
            }

        try:
            chunk.describe(
                row, number, held, config=self._instances, compute=compute, keep=self._job.config
            )
        except Exception as error:  # noqa: BLE001 (whatever it is, the other regions are none the worse)
            fail(row, stage="post", error=error)
        row["post_seconds"] = time.perf_counter() - start
        return row

    def _segment_warily(self, planned: Row, *, chunk: int, number: int) -> Row:
        """Alone, and with a note of it: an image over which the process dies is not begun again."""
        with self._notes.note_image(chunk, number) as deaths:
            if deaths < crashes.BLAMED:
                (row,) = self._segment([planned])
            else:
                row = self._job.begin_row(planned)
                fail(
                    row,
                    stage="crash",
                    error=RunError(crashes.describe(planned["image_uri"], deaths)),
                )
        return row

    def _read(self, planned: Row) -> Sample:
        """Reads and decodes one image; what goes wrong becomes part of its row."""
        start = time.perf_counter()
        sample = Sample(self._job.begin_row(planned))
        stage = "read"
        try:
            if sample.row["status"] is None:
                entry = Entry(
                    planned["image_uri"],
                    planned["member"],
                    planned["member_offset"],
                    planned["source_bytes"] or 0,
                )
                content = entry.read(self._cache)
                stage = "decode"
                image = decode_image(
                    content, name=entry.name, max_pixels=self._job.config.max_pixels
                )
                sample.row |= {
                    "format": name_format(content),
                    "height": image.shape[0],
                    "width": image.shape[1],
                }
                stage = "mask"
                sample.truth = _read_truth(
                    planned["mask_uri"], shape=image.shape[:2], cache=self._cache
                )
                sample.image = image
                if self._bundle.info.preprocess.intensity == "percentiles":
                    sample.levels = measure_range(image)
                    sample.row |= dict(zip(LEVELS, sample.levels, strict=True))
        except ResourceError:
            raise  # the storage is away, which is not this image's fault: the run ends here, and goes on when it is back
        except Exception as error:  # noqa: BLE001 (decoders raise what they like)
            fail(sample.row, stage=stage, error=error)
        sample.row["read_seconds"] = time.perf_counter() - start
        return sample

    def _predict(self, group: list[Sample]) -> list[Sample]:
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
                ranges=[sample.levels for sample in good],
            )
        except (RuntimeError, MemoryError) as error:
            if self._bundle.device.type == "cuda" and not isinstance(error, torch.OutOfMemoryError):
                logger.critical("the GPU is of no more use to this process: %s", error)
                os._exit(1)  # Ray replaces it
            if len(good) > 1:
                for sample in good:
                    self._predict([sample])
            else:
                fail(good[0].row, stage="model", error=error)
            return group
        seconds = time.perf_counter() - start
        pixels = sum(probability.size for probability in probabilities)
        for sample, probability in zip(good, probabilities, strict=True):
            sample.probability = probability
            sample.row["model_seconds"] = seconds * probability.size / pixels
        return group

    def _describe(self, sample: Sample) -> Row:
        start = time.perf_counter()
        row = sample.row
        if sample.probability is not None and sample.image is not None:
            try:
                keep: dict[str, Any] = {
                    "labels": self._job.config.labels,
                    "probabilities": self._job.config.probabilities,
                }
                pixels = sample.probability, sample.image
                row |= describe_image(
                    *pixels,
                    config=self._instances,
                    name=row["image_uri"],
                    truth=sample.truth,
                    **keep,
                )
                row["status"] = "ok"
            except Exception as error:  # noqa: BLE001 (whatever it is, the other images are none the worse)
                fail(row, stage="post", error=error)
        row["post_seconds"] = time.perf_counter() - start
        return row


def _load(job: Job, *, device: torch.device) -> Bundle:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "Ray gives the segmenting actor a GPU and torch finds none: install a torch with CUDA on that node, "
            "or segment on CPUs (--gpu off)"
        )
    bundle = load_bundle(job.config.bundle, device=device)
    if bundle.digest != job.bundle_digest:
        raise RunError(
            f"the bundle {job.config.bundle} was replaced while the run went on: run it again"
        )
    bundle.self_test()
    return bundle


def _read_tile(slide: Slide, chunk: SlideChunk, tile: Box) -> Sample:
    row = {"status": None, "read_seconds": 0.0, "model_seconds": 0.0}
    start = time.perf_counter()
    sample = Sample(row, tile=tile, levels=chunk.levels)
    try:
        sample.image = slide.read(tile.top, tile.left, *tile.shape, scale=chunk.scale)
    except (ImageError, MemoryError) as error:
        fail(row, stage="read", error=error)
    row["read_seconds"] = time.perf_counter() - start
    return sample


def _read_truth(
    uri: str | None, *, shape: tuple[int, int], cache: storage.Cache
) -> UInt8[np.ndarray, "h w"] | None:
    if uri is None:
        return None
    values = decode_labels(Entry(uri).read(cache), name=uri)
    if values.shape != shape:
        raise InputError(
            f"{uri} is {values.shape[0]} x {values.shape[1]}: expected {shape[0]} x {shape[1]}, as its image"
        )
    return (values > 0).astype(np.uint8)
