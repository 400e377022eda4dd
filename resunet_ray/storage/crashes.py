"""Notes of what was started, to find an image that kills its process and stop retrying it.

    attempts/CHUNK/chunk/SESSION.NODE.*   one per start of the chunk, which is the work of one task
    attempts/CHUNK/IMAGE/SESSION.NODE.*   one per start of the image alone, deleted when it is done

A note counts as a death of the process only if it was made in this session, on a node that is still
alive. A stopped job, an outage and a node that was taken away leave notes too, but no image caused
those.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from resunet_ray.storage import files, locations

SUSPECTED_AFTER = 2
"""Unfinished starts after which a chunk is suspected to hold an image that kills the process.

From then on, its images are processed one at a time.
"""
BLAMED_AFTER = 2
"""Unfinished starts of an image alone after which it is blamed."""

_FOLDER = "attempts"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Notes:
    """The notes of one run, as written by one process."""

    folder: str
    """Where the notes are kept. Each run has its own folder."""
    session: str
    """Name of the current driver, the same in all of its actors."""
    node: str
    """Node of this process. Empty if there is no node to lose."""
    is_lost: Callable[[str], bool]
    """Whether a node is gone."""

    def note_chunk(self, chunk: int) -> int:
        """Note the start of a chunk, and return how often the process has died on it before."""
        return self._note(locations.join(self.folder, _FOLDER, f"{chunk:06d}", "chunk"))

    @contextmanager
    def note_image(self, chunk: int, number: int) -> Iterator[int]:
        """Note an image while it is processed alone.

        Yields how often the process has died on it before.

        Args:
            chunk: number of the chunk.
            number: number of the image within the chunk.
        """
        place = locations.join(self.folder, _FOLDER, f"{chunk:06d}", str(number))
        yield self._note(place)
        files.delete_folder(place)

    def work_through(
        self,
        chunk: int,
        items: Sequence[Item],
        work: Callable[[Item], Result],
        *,
        blame: Callable[[Item, int], Result],
    ) -> list[Result]:
        """Return the results of the items of a chunk, without processing those that are blamed.

        Args:
            chunk: number of the chunk.
            items: the items of the chunk.
            work: item → its result.
            blame: item and number of deaths → the result of a blamed item.
        """
        if self.note_chunk(chunk) < SUSPECTED_AFTER:
            return [work(item) for item in items]
        results = []
        for number, item in enumerate(items):
            with self.note_image(chunk, number) as deaths:
                results.append(work(item) if deaths < BLAMED_AFTER else blame(item, deaths))
        return results

    def _note(self, place: str) -> int:
        names = [name for name, _ in files.list_files(place)] if files.exists(place) else []
        nodes = [
            node
            for session, node, *_ in (name.split(".") for name in names)
            if session == self.session
        ]
        files.write_bytes(
            locations.join(place, f"{self.session}.{self.node}.{uuid.uuid4().hex}"), b""
        )
        return sum(not self.is_lost(node) for node in nodes)


def describe(name: str, deaths: int) -> str:
    """Return the error message of a blamed image."""
    return f"the process died {deaths} times on {name}: out of memory, or a fault in a decoder"


def forget(folder: str) -> None:
    """Delete the notes of a finished run."""
    files.delete_folder(locations.join(folder, _FOLDER))
