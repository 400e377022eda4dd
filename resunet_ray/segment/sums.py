"""What the lots of a run came to so far, and how long they took."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LotSums:
    """Sums over the lots that are done, and the time between the first one's beginning and the last one's end."""

    actors: int
    networks: int = 1
    """How many images an actor computes at the same time."""
    lots: int = 0
    regions: int = 0
    failed: int = 0
    pixels: int = 0
    begun: float = float("inf")
    ended: float = 0.0
    stages: Counter[str] = field(default_factory=lambda: Counter({"read": 0.0, "model": 0.0, "post": 0.0}))

    def add(self, lot: dict[str, Any]) -> None:
        """Counts a lot that is done: what the actor says of it."""
        self.lots += 1
        for status, _, _, regions in lot["outcomes"]:
            self.regions += regions
            self.failed += regions if status == "failed" else 0
        self.networks = max(self.networks, lot["networks"])
        self.pixels += lot["pixels"]
        self.stages.update({name: lot[f"{name}_seconds"] for name in self.stages})
        self.begun, self.ended = min(self.begun, lot["begun"]), max(self.ended, lot["ended"])

    @property
    def seconds(self) -> float:
        """How long images were worked on: the start of Ray and the actors does not count."""
        return max(self.ended - self.begun, 1e-9)

    @property
    def network_seconds(self) -> float:
        """For how long networks were there in all, at work or not."""
        return self.seconds * self.actors * self.networks
