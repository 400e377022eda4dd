"""What a field means to a run that resumes, to a sweep, and to `--help`.

Each role is declared once, at the field; every list of fields follows from that.
"""

from enum import Enum
from typing import Annotated, Any, TypeVar, get_type_hints

T = TypeVar("T")

DECIDES, OF_EACH_IMAGE = "decides", "of each image"
MAY_CHANGE, SHARED = "may change", "shared"
ADDED = "added"
"""Beside `Decides`, of a field added after version 0.1.0: its default stands for what was done
before, so that images which an earlier version segmented still count as done."""
TUNING = "tuning"

Decides = Annotated[T, DECIDES]
"""Decides what is written about an image: with another value, the image is segmented again."""
OfEachImage = Annotated[T, DECIDES, OF_EACH_IMAGE]
"""The same, but its content differs from image to image, and counts as part of an image's name."""
MayChange = Annotated[T, MAY_CHANGE]
"""How, or for how long, the work is done: a run that resumes takes today's value."""
Shared = Annotated[T, SHARED]
"""The same for all trials of a sweep."""
Tuning = Annotated[T, TUNING]
"""Rarely needed: only `--help-all` shows it. On a nested configuration, it covers all fields."""


class Heading(Enum):
    """The title above a field and those after it, in `--help` and in docs/jobs.md.

    Headings are shown in the order below. On a nested configuration, one covers all fields.
    """

    INPUT = "Input and output"
    SPLIT = "Split"
    SWEEP = "Sweep"
    MODEL = "Model"
    TRAINING = "Training"
    VALIDATION = "Validation and checkpoints"
    AUGMENTATION = "Augmentation"
    SCORING = "Scoring"
    SEGMENTATION = "Segmentation"
    SLIDES = "Slides and pixel size"
    RUN = "This run"
    COMPUTE = "Compute"
    CACHE = "Cache"
    LEASE = "Lease"
    SERVERS = "Servers"
    DEADLINES = "Deadlines"
    THRESHOLDS = "Thresholds"


def list_fields(kind: type[Any], role: str) -> tuple[str, ...]:
    """List the names of a configuration's fields that have a role, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(name for name, hint in hints.items() if role in getattr(hint, "__metadata__", ()))
