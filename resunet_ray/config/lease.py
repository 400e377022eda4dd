"""The settings of every job that writes to an output: may two of them write there at once?"""

from dataclasses import dataclass
from typing import Annotated

from resunet_ray.config.checks import ANY, require_range
from resunet_ray.config.roles import Heading, MayChange, Shared, Tuning


@dataclass(frozen=True, kw_only=True)
class LeaseConfig:
    """How a job keeps others away from its output while it writes there."""

    lease: Annotated[Tuning[Shared[MayChange[bool]]], Heading.LEASE] = True
    """Off: nothing stops two runs from writing to one output at the same time (for storage without
    conditional writes)."""
    lease_seconds: Tuning[Shared[MayChange[float]]] = 60.0
    """Another run may take over after this long without a sign of life."""

    def __post_init__(self) -> None:
        require_range(self, 5, ANY, "lease_seconds")
