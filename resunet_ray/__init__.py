"""Train a ResUNet on microscopy images and segment cell nuclei with it, on Ray."""

__version__ = "0.2.0"
