"""The configuration of `jobs/demo.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """A run that takes minutes on two cores."""

    output: str = "out/demo"
    """Folder for everything that the demo writes."""
    images: int = 60
    """Images to generate."""
    epochs: int = 20
    """Passes over the training images."""
