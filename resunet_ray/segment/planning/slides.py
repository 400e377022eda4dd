"""Planning slides: files that may be slides are opened, and slides become their regions."""

import itertools
import uuid
from collections.abc import Iterable, Iterator

import pyarrow as pa

from resunet_ray import storage
from resunet_ray.cluster import connect, is_lost, this_node
from resunet_ray.records import from_table, to_table
from resunet_ray.schema import PLAN
from resunet_ray.segment.planning.survey import Surveyor, may_be_slide
from resunet_ray.segment.rows import PlannedRegion
from resunet_ray.storage import crashes
from resunet_ray.tasks import stream_tasks

_FILES = 512  # opened together
_TASKS = 64  # that open them
_ROWS = 4096  # regions that are Python objects at a time


class SlidePlanner:
    """Replaces each slide among some images by its regions."""

    def __init__(self, surveyor: Surveyor, *, folder: str) -> None:
        """Open nothing yet.

        Args:
            surveyor: opens a file and plans its regions.
            folder: for notes of what was begun, which tell a file that kills the process.
        """
        self._surveyor, self._folder = surveyor, folder
        self._session, self._tasks = uuid.uuid4().hex, 0

    def plan(self, images: Iterable[PlannedRegion]) -> Iterator[PlannedRegion]:
        """Yield images, and the regions of slides in their place.

        Files are opened in groups, on the cluster if there is one. Those that turn out to be plain
        images come last in their group.
        """
        waiting: list[PlannedRegion] = []
        for image in images:
            if not may_be_slide(image):
                yield image
                continue
            waiting.append(image)
            if len(waiting) == _FILES:
                yield from self._slides_first(waiting)
                waiting = []
        if waiting:
            yield from self._slides_first(waiting)

    def _slides_first(self, files: list[PlannedRegion]) -> Iterator[PlannedRegion]:
        plain: list[PlannedRegion] = []
        for region in self._survey(files):
            if region.place.is_slide:
                yield region
            else:
                plain.append(region)
        yield from plain

    def _survey(self, files: list[PlannedRegion]) -> Iterator[PlannedRegion]:
        """Yield the regions of each file in turn."""
        if self._surveyor.config.actors == 0:
            yield from itertools.chain.from_iterable(map(self._surveyor, files))
            return
        connect()
        size = max(1, len(files) // _TASKS)
        slices = [files[start : start + size] for start in range(0, len(files), size)]
        # Not self: a task takes along what it names.
        first, surveyor, folder, session = (
            *(self._tasks, self._surveyor),
            *(self._folder, self._session),
        )
        self._tasks += len(slices)

        def look(number: int) -> pa.Table:
            notes = crashes.Notes(folder, session, node=this_node(), is_lost=is_lost)
            found = notes.work_through(
                first + number, slices[number], surveyor, blame=surveyor.blame
            )
            return to_table(itertools.chain.from_iterable(found), PLAN)

        what = "regions planned on files that may be slides"
        for table in stream_tasks(look, count=len(slices), total=0, what=what, in_order=True):
            for batch in table.to_batches(_ROWS):
                yield from from_table(PlannedRegion, pa.Table.from_batches([batch]))
        storage.delete_folder(folder)
