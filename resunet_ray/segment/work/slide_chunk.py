"""Regions of one slide that are segmented together, so that a tile that several of them see is computed once."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from resunet_ray.config import InstanceConfig, PreprocessConfig, SegmentConfig
from resunet_ray.data.slides import Slide
from resunet_ray.intensity import Range
from resunet_ray.model.tiling import Box
from resunet_ray.segment.planning.gate import Gate
from resunet_ray.segment.planning.grid import Grid
from resunet_ray.segment.rows import LEVELS, Row, region_window
from resunet_ray.segment.work.objects import MARGIN, find_objects
from resunet_ray.segment.work.region import describe_region
from resunet_ray.segment.work.sample import Sample

Held = dict[Box, Sample]


class _DamagedError(Exception):
    """A tile that a region needs cannot be read."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row


@dataclass(frozen=True)
class SlideChunk:
    """The windows of some regions of one slide, in the order of their rows."""

    grid: Grid
    scale: float
    """Side of a pixel of the grid, in pixels of the slide."""
    regions: Sequence[Box]
    gates: Sequence[Gate | None]
    """Where there is tissue around each region; None: everywhere."""
    levels: Range | None = None
    """The slide's range of intensities, where the network asks for it."""

    @classmethod
    def of(
        cls, rows: Sequence[Row], slide: Slide, *, preprocess: PreprocessConfig, side: int
    ) -> "SlideChunk":
        """The chunk of some rows of the plan.

        Args:
            rows: of one slide.
            slide: open.
            preprocess: the bundle's tiles.
            side: of a region, as it was planned.
        """
        scale = rows[0]["scale_to_level0"]
        grid = Grid(*slide.size_at(scale), tile=preprocess.tile, context=preprocess.context)
        low, high = (rows[0][name] for name in LEVELS)
        windows = [
            region_window(row, height=grid.height, width=grid.width, side=side) for row in rows
        ]
        size = {"height": grid.height, "width": grid.width}
        gates = [
            None if row.get("tissue") is None else Gate.unpack(row["tissue"], region=window, **size)
            for row, window in zip(rows, windows, strict=True)
        ]
        return cls(grid, scale, windows, gates, levels=None if low is None else (low, high))

    def tiles(self) -> Iterator[Box]:
        """Those that the regions need, each once, in the order in which they are needed."""
        yield from dict.fromkeys(tile for needed in self._needed for tile in needed)

    def gather(self, samples: Iterable[Sample]) -> Iterator[tuple[int, Held]]:
        """Each region's number with its tiles, as soon as these are there; a tile that is of no more use is let go.

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
        """The tiles of each region, with its margin."""
        return [self.grid.tiles(self.grid.widen(region, MARGIN)) for region in self.regions]

    def describe(
        self,
        row: Row,
        number: int,
        held: Held,
        *,
        config: InstanceConfig,
        compute: Callable[[list[Box]], Held],
        keep: SegmentConfig,
    ) -> None:
        """Fills a region's row with what its window holds.

        Args:
            row: of REGIONS.
            number: of the region.
            held: its tiles; more are added where objects reach beyond the margin.
            config: threshold and instances.
            compute: gives further tiles.
            keep: says whether label images and probabilities are kept as well.
        """
        region = self.regions[number]

        def look(window: Box) -> Float32[np.ndarray, "h w"]:
            held.update(compute([tile for tile in self.grid.tiles(window) if tile not in held]))
            for sample in held.values():
                if sample.row["status"] == "failed":
                    raise _DamagedError(sample.row)
            probabilities = {
                tile: sample.probability
                for tile, sample in held.items()
                if sample.probability is not None
            }
            return self.grid.blend(window, probabilities)

        try:
            found = find_objects(
                look, region=region, grid=self.grid, config=config, gate=self.gates[number]
            )
        except _DamagedError as damage:
            row |= {
                name: damage.row[name]
                for name in ("status", "error_stage", "error_type", "error_message")
            }
            return
        images = {tile: sample.image for tile, sample in held.items() if sample.image is not None}
        row |= describe_region(
            found,
            self.grid.paste(region, images),
            bounds=(self.grid.height, self.grid.width),
            scale=self.scale,
            name=row["image_uri"],
            labels=keep.labels,
            probabilities=keep.probabilities,
        )
        for (
            sample
        ) in held.values():  # a tile's seconds count once, for the first region that takes it
            for name in ("read_seconds", "model_seconds"):
                row[name] += sample.row[name]
                sample.row[name] = 0.0
        row["status"] = "ok"
