"""Notes of what was begun, so that an image over which the process dies is found, and not begun for ever.

runs/RUN/attempts/LOT/lot/*        one for each time that the lot was begun
runs/RUN/attempts/LOT/IMAGE/*      one for each time that the image was begun alone, gone when it was done
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from resunet_ray import storage

TRUSTED = 2
"""A lot that was begun so often and not finished may hold an image that kills the process: its images are taken alone."""
BLAMED = 2
"""An image that was begun alone so often and not done is to blame."""

_FOLDER = "attempts"


def note_lot(folder: str, lot: int) -> int:
    """Notes that a lot is begun; how often it was before.

    Args:
        folder: of the run.
        lot: its number.
    """
    return _note(storage.join(folder, _FOLDER, f"{lot:06d}", "lot"))


@contextmanager
def note_image(folder: str, lot: int, number: int) -> Iterator[int]:
    """Notes an image while it is worked on alone; gives how often it was begun before and not done.

    Args:
        folder: of the run.
        lot: number of the lot.
        number: of the image within the lot.
    """
    place = storage.join(folder, _FOLDER, f"{lot:06d}", str(number))
    yield _note(place)
    storage.delete(place)


def forget(folder: str) -> None:
    """Deletes the notes of a run that is done."""
    storage.delete(storage.join(folder, _FOLDER))


def _note(place: str) -> int:
    before = len(list(storage.list_files(place))) if storage.exists(place) else 0
    storage.write_bytes(storage.join(place, uuid.uuid4().hex), b"")
    return before
