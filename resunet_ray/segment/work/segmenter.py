"""The actor: takes a chunk from its images' bytes to one file of regions.

    read and decode, in threads ahead ─► network, several images in a batch ─► mask, instances,
    sums, in threads behind

A chunk is one call. Two calls at a time share the threads, so that the network need not wait
between chunks. A chunk's file appears whole or not at all, and always under the same name, so a
chunk that is done twice, because a node was thought dead, is there once. A bad image becomes a row
that says so.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pyarrow as pa

from resunet_ray import monitoring, storage
from resunet_ray.cluster import is_lost, this_node
from resunet_ray.data.raster.planes import Selection
from resunet_ray.data.slides import Slide
from resunet_ray.errors import InputError, RunError
from resunet_ray.model.diameter import choose_scale, estimate_diameter
from resunet_ray.model.tiling import Box
from resunet_ray.segment import layout
from resunet_ray.segment.failures import Failure, require_few_unclear
from resunet_ray.segment.planning.plan import read_chunk
from resunet_ray.segment.planning.staged import open_planned
from resunet_ray.segment.rows import Findings, PlannedRegion, Region, Seconds
from resunet_ray.segment.work.chunk_file import write_regions
from resunet_ray.segment.work.region import describe_image
from resunet_ray.segment.work.sample import Sample, group_samples, read_image, read_tile
from resunet_ray.segment.work.slide_chunk import DamagedTileError, Held, SlideChunk, take_seconds
from resunet_ray.segment.work.spec import RunSpec
from resunet_ray.segment.work.sums import ChunkResult, CoreClock
from resunet_ray.storage import crashes
from resunet_ray.tasks import map_ahead

logger = logging.getLogger(__name__)

CALLS = 2  # chunks that an actor segments at a time

_TILE_PIXELS = 2**18
"""Images share a call of the network until they fill its batch at this many pixels a tile."""


class Segmenter:
    """Holds the network and segments chunks."""

    def __init__(self, spec: RunSpec) -> None:
        """Load the bundle and run its self-test.

        Raises:
            ResourceError: a GPU is expected, and torch finds none.
            RunError: the network's output differs from that recorded when the bundle was saved.
        """
        cv2.setNumThreads(1)  # the threads below are enough
        self._clock = CoreClock()
        self._spec, self._cache = spec, storage.Cache.of(spec.config)
        self._notes = crashes.Notes(spec.folder, spec.session, node=this_node(), is_lost=is_lost)
        self._networks = spec.networks
        self._bundle = spec.load_bundle()
        self._model = ThreadPoolExecutor(
            self._networks, thread_name_prefix="model", initializer=self._bundle.begin_thread
        )
        self._stretches = self._bundle.info.preprocess.intensity == "percentiles"
        self._instances = self._bundle.info.instances
        if spec.config.threshold is not None:
            self._instances = replace(self._instances, threshold=spec.config.threshold)
        self._batch_size = spec.config.batch_size or self._bundle.default_batch_size
        self._readers = ThreadPoolExecutor(spec.config.readers, thread_name_prefix="read")
        self._post = ThreadPoolExecutor(spec.post_threads, thread_name_prefix="post")
        self._calls, self._alone = threading.Semaphore(CALLS), threading.Lock()
        # An executor has no public way to say how much waits for it.
        waiting = {"model": self._model._work_queue.qsize, "post": self._post._work_queue.qsize}
        self._stop_showing = monitoring.show_waiting(spec.watched, waiting)

    def close(self) -> None:
        """End the threads. Those of an actor end with its process."""
        self._stop_showing()
        for pool in (self._readers, self._model, self._post):
            pool.shutdown()

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Segment the chunks with these numbers among `RunSpec.chunks`; one result a row."""
        results = [self.segment_chunk(self._spec.chunks[number]) for number in batch["id"]]
        return pa.concat_tables(result.to_table() for result in results)

    def segment_chunk(self, chunk: int) -> ChunkResult:
        """Segment one chunk and write its file."""
        begun = time.time()
        planned = read_chunk(self._spec.folder, chunk)
        if self._notes.note_chunk(chunk) < crashes.SUSPECTED_AFTER:
            with self._calls:
                regions = self._segment(planned)
        else:
            with self._alone, ExitStack() as others:  # so that no other chunk's image is blamed
                for _ in range(CALLS):
                    others.enter_context(self._calls)
                regions = [
                    self._segment_warily(region, chunk=chunk, number=number)
                    for number, region in enumerate(planned)
                ]
        failures = {region.image.image_id: region.failure for region in regions}
        require_few_unclear(failures.values(), most=self._spec.config.max_unclear_fraction)
        write_regions(layout.chunk_uri(self._spec.output, self._spec.run_id, chunk), regions)
        took = self._clock.take()
        return ChunkResult.of(
            regions, networks=self._networks, begun=begun, ended=time.time(), core_seconds=took
        )

    def _segment(self, planned: list[PlannedRegion]) -> list[Region]:
        first = planned[0].place
        if first.num_regions and first.is_slide:
            return self._segment_slide(planned)
        depth = 4 * self._spec.post_threads
        samples = map_ahead(self._readers, self._read, planned, depth=2 * self._spec.config.readers)
        return list(map_ahead(self._post, self._describe, self._compute(samples), depth=depth))

    def _compute(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Send samples through the network, several at once."""
        groups = group_samples(samples, pixels=self._batch_size * _TILE_PIXELS)
        return itertools.chain.from_iterable(
            map_ahead(self._model, self._predict, groups, depth=2 * self._networks)
        )

    def _segment_slide(self, planned: list[PlannedRegion]) -> list[Region]:
        """Segment regions of one slide."""
        image, config = planned[0].image, self._spec.config
        kind, known = planned[0].place.format, planned[0].source_fingerprint
        try:
            with open_planned(
                image, kind, fingerprint=known, config=config, stored=not self._stretches
            ) as slide:
                seen = self._bundle.info.preprocess
                chunk = SlideChunk.of(planned, slide, preprocess=seen, side=config.region)
                tiles = map_ahead(
                    self._readers,
                    partial(read_tile, slide, scale=chunk.scale, levels=chunk.levels),
                    chunk.tiles(),
                    depth=2 * config.readers,
                )
                describe = partial(self._describe_region, slide, chunk, planned)
                ready = chunk.gather(self._compute(tiles))
                return list(map_ahead(self._post, describe, ready, depth=self._spec.post_threads))
        except (InputError, MemoryError) as error:  # it was there when it was planned
            failure = Failure.of(error, stage="open", uri=image.image_uri)
            return [
                Region.of(region, failure=failure, origin=self._spec.origin) for region in planned
            ]

    def _describe_region(
        self,
        slide: Slide,
        chunk: SlideChunk,
        planned: list[PlannedRegion],
        ready: tuple[int, Held],
    ) -> Region:
        number, held = ready
        start = time.perf_counter()
        findings, failure, taken = None, None, (0.0, 0.0)

        def compute(tiles: list[Box]) -> Held:
            samples = [
                read_tile(slide, tile, scale=chunk.scale, levels=chunk.levels) for tile in tiles
            ]
            return {
                tile: self._model.submit(self._predict, [sample]).result()[0]
                for tile, sample in zip(tiles, samples, strict=True)
            }

        try:
            findings = chunk.describe(
                number,
                held,
                name=planned[number].image.image_uri,
                config=self._instances,
                compute=compute,
                keep=self._spec.config,
            )
            taken = take_seconds(held)
        except DamagedTileError as damage:
            failure = damage.failure
        except Exception as error:  # noqa: BLE001 (whatever it is, the other regions are fine)
            failure = Failure.of(error, stage="post")
        return Region.of(
            planned[number],
            findings=findings,
            failure=failure,
            seconds=Seconds(
                read_seconds=taken[0],
                model_seconds=taken[1],
                post_seconds=time.perf_counter() - start,
            ),
            origin=self._spec.origin,
        )

    def _segment_warily(self, planned: PlannedRegion, *, chunk: int, number: int) -> Region:
        """Segment a region alone, with a note, so that it kills the process at most twice."""
        with self._notes.note_image(chunk, number) as deaths:
            if deaths < crashes.BLAMED_AFTER:
                (region,) = self._segment([planned])
                return region
            error = RunError(crashes.describe(planned.image.image_uri, deaths))
            failure = Failure.of(error, stage="crash")
            return Region.of(planned, failure=failure, origin=self._spec.origin)

    def _read(self, planned: PlannedRegion) -> Sample:
        config = self._spec.config

        def choose(mpp: float | None) -> float | None:
            diameter = config.diameter_at(mpp)
            return choose_scale(diameter, mpp=mpp, bundle_mpp=self._bundle.info.mpp)

        return read_image(
            planned,
            cache=self._cache,
            max_pixels=config.max_pixels,
            measure=self._stretches,
            selection=Selection.of(config),
            scale_at=choose,
            shared=config.scale == "file",
        )

    def _predict(self, group: list[Sample]) -> list[Sample]:
        """Predict several images at once; if that fails, each alone."""
        good = [sample for sample in group if sample.image is not None]
        if not good:
            return group
        start = time.perf_counter()
        try:
            predictions = self._bundle.predict(
                [sample.image for sample in good if sample.image is not None],
                batch_size=self._batch_size,
                flips=self._spec.config.flips,
                precision=self._spec.config.precision,
                ranges=[sample.levels for sample in good],
                scales=[sample.scale for sample in good],
            )
        except (RuntimeError, MemoryError) as error:
            if self._bundle.is_broken_by(error):
                logger.critical("this process can no longer use the GPU: %s", error)
                os._exit(1)  # Ray replaces it
            if len(good) > 1:
                for sample in good:
                    self._predict([sample])
            else:
                good[0].failure = Failure.of(error, stage="model")
            return group
        seconds = time.perf_counter() - start
        pixels = sum(prediction.maps[0].size for prediction in predictions)
        for sample, prediction in zip(good, predictions, strict=True):
            sample.prediction = prediction
            if sample.planned is not None:
                size = estimate_diameter(prediction)
                place = replace(sample.planned.place, diameter_px=size)
                sample.planned = replace(sample.planned, place=place)
            sample.model_seconds = seconds * prediction.maps[0].size / pixels
        return group

    def _describe(self, sample: Sample) -> Region:
        assert sample.planned is not None, "it is an image"
        start = time.perf_counter()
        findings: Findings | None = None
        if sample.failure is None and sample.prediction is not None and sample.image is not None:
            try:
                findings = describe_image(
                    sample.prediction,
                    sample.image,
                    config=self._instances,
                    name=sample.planned.image.image_uri,
                    truth=sample.truth,
                    labels=self._spec.config.labels,
                    probabilities=self._spec.config.probabilities,
                )
            except Exception as error:  # noqa: BLE001 (whatever it is, the other images are fine)
                sample.failure = Failure.of(error, stage="post")
        return Region.of(
            sample.planned,
            findings=findings,
            failure=sample.failure,
            seconds=Seconds(
                read_seconds=sample.read_seconds,
                model_seconds=sample.model_seconds,
                post_seconds=time.perf_counter() - start,
            ),
            origin=self._spec.origin,
        )
