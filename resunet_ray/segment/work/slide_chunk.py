"""Regions of one slide, segmented together so that the tiles they share are computed once."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from resunet_ray.config import InstanceConfig, PreprocessConfig, SegmentConfig
from resunet_ray.data.slides import Slide
from resunet_ray.intensity import Range
from resunet_ray.model.prediction import Prediction
from resunet_ray.model.tiling import Box
from resunet_ray.segment.failures import Failure
from resunet_ray.segment.planning.grid import Gate, Grid
from resunet_ray.segment.rows import Findings, PlannedRegion
from resunet_ray.segment.work.objects import MARGIN, find_objects
from resunet_ray.segment.work.region import describe_region
from resunet_ray.segment.work.sample import Sample

Held = dict[Box, Sample]


class DamagedTileError(Exception):
    """A tile that a region needs could not be read."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error_message)
        self.failure = failure


@dataclass(frozen=True)
class SlideChunk:
    """The windows of some regions of one slide."""

    grid: Grid
    scale: float
    """Side of a pixel of the grid, in pixels of the slide."""
    regions: Sequence[Box]
    gates: Sequence[Gate | None]
    """Where there is tissue around each region; None: everywhere."""
    levels: Range | None = None
    """The slide's range of intensities, if the network's scale depends on it."""

    @classmethod
    def of(
        cls,
        planned: Sequence[PlannedRegion],
        slide: Slide,
        *,
        preprocess: PreprocessConfig,
        side: int,
    ) -> "SlideChunk":
        """Return the chunk of some planned regions.

        Args:
            planned: of one slide.
            slide: open.
            preprocess: the bundle's tiles.
            side: of a region, as it was planned.
        """
        first = planned[0].place
        height, width = slide.size_at(first.scale_to_level0)
        grid = Grid(height, width, tile=preprocess.tile, context=preprocess.context)
        windows = [it.place.window(height=height, width=width, side=side) for it in planned]
        gates = [
            None
            if it.tissue is None
            else Gate.unpack(it.tissue, region=window, height=height, width=width)
            for it, window in zip(planned, windows, strict=True)
        ]
        return cls(grid, first.scale_to_level0, windows, gates, levels=first.levels)

    def tiles(self) -> Iterator[Box]:
        """Yield the tiles that the regions need, each once, in the order of need."""
        yield from dict.fromkeys(tile for needed in self._needed for tile in needed)

    def gather(self, samples: Iterable[Sample]) -> Iterator[tuple[int, Held]]:
        """Yield each region's number with its tiles as soon as they are there.

        A tile is dropped after the last region that needs it.

        Args:
            samples: of `tiles()`, in that order.
        """
        last = {tile: number for number, needed in enumerate(self._needed) for tile in needed}
        held: Held = {}
        number = 0
        for sample in samples:
            assert sample.tile is not None, "a tile's sample knows its tile"
            held[sample.tile] = sample
            while number < len(self.regions) and all(tile in held for tile in self._needed[number]):
                yield number, {tile: held[tile] for tile in self._needed[number]}
                number += 1
                held = {tile: kept for tile, kept in held.items() if last[tile] >= number}

    @functools.cached_property
    def _needed(self) -> list[list[Box]]:
        """The tiles of each region and its margin."""
        return [self.grid.tiles(self.grid.widen(region, MARGIN)) for region in self.regions]

    def describe(
        self,
        number: int,
        held: Held,
        *,
        name: str,
        config: InstanceConfig,
        compute: Callable[[list[Box]], Held],
        keep: SegmentConfig,
    ) -> Findings:
        """Describe what a region holds.

        Args:
            number: of the region.
            held: its tiles; more are added where objects reach beyond the margin.
            name: of the slide, for errors.
            config: threshold and instances.
            compute: gives further tiles.
            keep: says whether label images and probabilities are kept as well.

        Raises:
            DamagedTileError: a tile could not be read.
        """
        region = self.regions[number]

        def look(window: Box) -> Prediction:
            held.update(compute([tile for tile in self.grid.tiles(window) if tile not in held]))
            for sample in held.values():
                if sample.failure is not None:
                    raise DamagedTileError(sample.failure)
            predictions = {
                tile: sample.prediction
                for tile, sample in held.items()
                if sample.prediction is not None
            }
            return self.grid.blend(window, predictions)

        objects = find_objects(
            look, region=region, grid=self.grid, config=config, gate=self.gates[number]
        )
        images = {tile: sample.image for tile, sample in held.items() if sample.image is not None}
        return describe_region(
            objects,
            self.grid.paste(region, images),
            bounds=(self.grid.height, self.grid.width),
            scale=self.scale,
            name=name,
            labels=keep.labels,
            probabilities=keep.probabilities,
        )


def take_seconds(held: Held) -> tuple[float, float]:
    """Return how long tiles took to read and to compute; each counts once."""
    taken = [0.0, 0.0]
    for sample in held.values():
        taken[0] += sample.read_seconds
        taken[1] += sample.model_seconds
        sample.read_seconds = sample.model_seconds = 0.0
    return taken[0], taken[1]
