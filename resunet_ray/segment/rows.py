"""The rows that go from the plan to the tables, and where a region lies."""

from typing import Any

from resunet_ray import storage
from resunet_ray.model.tiling import Box

Row = dict[str, Any]

LEVELS = "level_low", "level_high"
"""The columns of an image's range of intensities."""


def fail(row: Row, *, stage: str, error: Exception) -> None:
    """Notes in a row what went wrong, and where."""
    message = storage.mask_credentials(str(error)) or type(error).__name__
    row |= {
        "status": "failed",
        "error_stage": stage,
        "error_type": type(error).__name__,
        "error_message": message,
    }


def is_slide(row: Row) -> bool:
    """Whether a region is one of a slide, which is read in parts."""
    return row["slide_height"] is not None


def place_region(window: Box, *, scale: float) -> Row:
    """Where a window lies, in pixels of the slide."""
    top, left = round(window.top * scale), round(window.left * scale)
    height, width = round(window.bottom * scale) - top, round(window.right * scale) - left
    return {"y": top, "x": left, "height": height, "width": width}


def region_window(row: Row, *, height: int, width: int, side: int) -> Box:
    """The window that `place_region` placed, among those of the grid.

    Args:
        row: of the plan.
        height: of the slide at the row's scale.
        width: of the slide.
        side: of a region.
    """
    scale = row["scale_to_level0"]
    top, left = (round(row[name] / scale / side) * side for name in "yx")
    return Box(top, min(top + side, height), left, min(left + side, width))
