"""What a chunk says when it is done, and the sums of a run over its chunks."""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

import pyarrow as pa

from resunet_ray.segment.rows import Region, Seconds, sum_seconds

Outcome = tuple[str, str, str, int]
"""Status, error stage, error type, number of regions."""


class CoreClock:
    """The CPU time of this process, handed out once: chunks overlap."""

    def __init__(self) -> None:
        self._taken, self._lock = time.process_time(), threading.Lock()

    def take(self) -> float:
        """Return the seconds since the last call, or since the clock was made."""
        with self._lock:
            before, self._taken = self._taken, time.process_time()
            return self._taken - before


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """A chunk whose file is written."""

    outcomes: Sequence[Outcome]
    pixels: int
    networks: int
    """Images that its actor computes at the same time."""
    begun: float
    """Seconds since the epoch, as is `ended`."""
    ended: float
    core_seconds: float
    """CPU time of its actor since the chunk before, or since the actor started."""
    seconds: Seconds

    @classmethod
    def of(
        cls,
        regions: Sequence[Region],
        *,
        networks: int,
        begun: float,
        ended: float,
        core_seconds: float,
    ) -> Self:
        """Sum up the regions of a chunk."""
        outcomes = Counter(
            (region.status, region.failure.error_stage, region.failure.error_type)
            if region.failure
            else (region.status, "", "")
            for region in regions
        )
        return cls(
            outcomes=[(*outcome, count) for outcome, count in outcomes.items()],
            pixels=sum(region.findings.sums.pixels for region in regions if region.findings),
            networks=networks,
            begun=begun,
            ended=ended,
            core_seconds=core_seconds,
            seconds=sum_seconds(regions),
        )

    def to_table(self) -> pa.Table:
        """Return one row, which Ray Data carries to the driver."""
        return pa.table({"result": [json.dumps(asdict(self))]})

    @classmethod
    def from_table(cls, table: pa.Table) -> list[Self]:
        """Read what `to_table` wrote, one result a row."""
        return [cls._read(json.loads(text)) for text in table["result"].to_pylist()]

    @classmethod
    def _read(cls, values: dict[str, object]) -> Self:
        outcomes = [tuple(outcome) for outcome in values["outcomes"]]  # type: ignore[attr-defined]
        return cls(**values | {"outcomes": outcomes, "seconds": Seconds(**values["seconds"])})  # type: ignore[arg-type]


@dataclass
class ChunkSums:
    """Sums over the chunks that are done, from the first one's start to the last one's end."""

    actors: int
    networks: int = 1
    """Images that an actor computes at the same time."""
    chunks: int = 0
    regions: int = 0
    failed: int = 0
    pixels: int = 0
    begun: float = float("inf")
    ended: float = 0.0
    core_seconds: float = 0.0
    """CPU time of all actors, the loading of their networks included."""
    stages: Counter[str] = field(
        default_factory=lambda: Counter({"read": 0.0, "model": 0.0, "post": 0.0})
    )

    def add(self, chunk: ChunkResult) -> None:
        """Add a chunk that is done."""
        self.chunks += 1
        for status, _, _, regions in chunk.outcomes:
            self.regions += regions
            self.failed += regions if status == "failed" else 0
        self.networks = max(self.networks, chunk.networks)
        self.pixels += chunk.pixels
        self.core_seconds += chunk.core_seconds
        self.stages.update(stage_seconds(chunk.seconds))
        self.begun, self.ended = min(self.begun, chunk.begun), max(self.ended, chunk.ended)

    @property
    def seconds(self) -> float:
        """How long images were worked on, without the start of Ray and the actors."""
        return max(self.ended - self.begun, 1e-9)

    @property
    def network_seconds(self) -> float:
        """Time of all networks together, whether they computed or waited."""
        return self.seconds * self.actors * self.networks

    def cost(self, *, gpus: float, images: float, price_per_hour: float | None) -> dict[str, float]:
        """Return what the actors took.

        Args:
            gpus: that each held, or the share of one.
            images: that they segmented.
            price_per_hour: of an actor.
        """
        held = self.seconds * self.actors
        took = {"core_seconds": self.core_seconds} | ({"gpu_seconds": held * gpus} if gpus else {})
        cost = dict(took)
        for what, number in (("image", images), ("megapixel", self.pixels / 1e6)):
            if number:
                cost |= {f"{name}_per_{what}": value / number for name, value in took.items()}
        if price_per_hour is not None:
            cost["price"] = held / 3600 * price_per_hour
        return {name: round(value, 6) for name, value in cost.items()}


def stage_seconds(seconds: Seconds) -> dict[str, float]:
    """Return the seconds by stage: read, model, post."""
    return {name.removesuffix("_seconds"): value for name, value in vars(seconds).items()}
