"""What a field is to a run that goes on and to a sweep. It is said once, at the field; every list of fields follows from that."""

from typing import Annotated, Any, TypeVar, get_type_hints

T = TypeVar("T")

DECIDES, OF_EACH_IMAGE, TODAYS, SHARED = "decides", "of each image", "today's", "shared"

Decides = Annotated[T, DECIDES]
"""Decides what is written about an image: with another value, its work is new."""
OfEachImage = Annotated[T, DECIDES, OF_EACH_IMAGE]
"""The same, but what it says differs from image to image, and counts as a part of the image's name."""
Todays = Annotated[T, TODAYS]
"""How the work is done, or for how long: a run that goes on takes the value of today."""
Shared = Annotated[T, SHARED]
"""The same for all trials of a sweep."""


def list_fields(kind: type[Any], role: str) -> tuple[str, ...]:
    """The names of a configuration's fields that have a role, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(name for name, hint in hints.items() if role in getattr(hint, "__metadata__", ()))
