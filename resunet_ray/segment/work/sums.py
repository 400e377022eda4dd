"""What the chunks of a run came to so far, and how long they took."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ChunkSums:
    """Sums over the chunks that are done, and the time between the first one's beginning and the last one's end."""

    actors: int
    networks: int = 1
    """How many images an actor computes at the same time."""
    chunks: int = 0
    regions: int = 0
    failed: int = 0
    pixels: int = 0
    begun: float = float("inf")
    ended: float = 0.0
    stages: Counter[str] = field(
        default_factory=lambda: Counter({"read": 0.0, "model": 0.0, "post": 0.0})
    )

    def add(self, chunk: dict[str, Any]) -> None:
        """Counts a chunk that is done: what the actor says of it."""
        self.chunks += 1
        for status, _, _, regions in chunk["outcomes"]:
            self.regions += regions
            self.failed += regions if status == "failed" else 0
        self.networks = max(self.networks, chunk["networks"])
        self.pixels += chunk["pixels"]
        self.stages.update({name: chunk[f"{name}_seconds"] for name in self.stages})
        self.begun, self.ended = min(self.begun, chunk["begun"]), max(self.ended, chunk["ended"])

    @property
    def seconds(self) -> float:
        """How long images were worked on: the start of Ray and the actors does not count."""
        return max(self.ended - self.begun, 1e-9)

    @property
    def network_seconds(self) -> float:
        """For how long networks were there in all, at work or not."""
        return self.seconds * self.actors * self.networks
