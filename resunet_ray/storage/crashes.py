"""Notes of what was begun, so that an image over which the process dies is found, and not begun for ever.

attempts/CHUNK/chunk/SESSION.NODE.*        one for each time that the chunk was begun: some images that one task takes
attempts/CHUNK/IMAGE/SESSION.NODE.*      one for each time that the image was begun alone, gone when it was done

Only what began in this session, on a node that is still there, was ended by a death of its process: a job that was stopped, an
outage and a node that was taken away leave notes as well, and are no image's fault.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from resunet_ray.storage import files

TRUSTED = 2
"""A chunk that was begun so often and not finished may hold an image that kills the process: its images are taken alone."""
BLAMED = 2
"""An image that was begun alone so often and not done is to blame."""

_FOLDER = "attempts"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Notes:
    """The notes of one run, as one process takes them."""

    folder: str
    """Where they are: a run's own."""
    session: str
    """Names the driver that is at work, the same in all of its actors."""
    node: str
    """Where this process is; empty: no node that could be lost."""
    is_lost: Callable[[str], bool]
    """Whether a node is gone."""

    def note_chunk(self, chunk: int) -> int:
        """Notes that a chunk is begun; how often the process died over it before."""
        return self._note(files.join(self.folder, _FOLDER, f"{chunk:06d}", "chunk"))

    @contextmanager
    def note_image(self, chunk: int, number: int) -> Iterator[int]:
        """Notes an image while it is worked on alone; gives how often the process died over it before.

        Args:
            chunk: number of the chunk.
            number: of the image within the chunk.
        """
        place = files.join(self.folder, _FOLDER, f"{chunk:06d}", str(number))
        yield self._note(place)
        files.delete(place)

    def work_through(
        self,
        chunk: int,
        items: Sequence[Item],
        work: Callable[[Item], Result],
        *,
        blame: Callable[[Item, int], Result],
    ) -> list[Result]:
        """The results of some items, one after the other; those over which the process died are not begun any more.

        Args:
            chunk: number of the chunk.
            items: in it.
            work: item → its result.
            blame: item and deaths → the result of one that is to blame.
        """
        if self.note_chunk(chunk) < TRUSTED:
            return [work(item) for item in items]
        results = []
        for number, item in enumerate(items):
            with self.note_image(chunk, number) as deaths:
                results.append(work(item) if deaths < BLAMED else blame(item, deaths))
        return results

    def _note(self, place: str) -> int:
        names = [name for name, _ in files.list_files(place)] if files.exists(place) else []
        nodes = [
            node
            for session, node, *_ in (name.split(".") for name in names)
            if session == self.session
        ]
        files.write_bytes(files.join(place, f"{self.session}.{self.node}.{uuid.uuid4().hex}"), b"")
        return sum(not self.is_lost(node) for node in nodes)


def describe(name: str, deaths: int) -> str:
    """What is wrong with an image that is to blame."""
    return f"the process died {deaths} times over {name}: out of memory, or a fault in a decoder"


def forget(folder: str) -> None:
    """Deletes the notes of a run that is done."""
    files.delete(files.join(folder, _FOLDER))
