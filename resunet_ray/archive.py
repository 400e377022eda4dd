"""Segment an archive from its inputs to its reports: everything that `jobs/segment.py` does."""

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from resunet_ray import storage
from resunet_ray.cluster import connect
from resunet_ray.config import ExportConfig, SegmentConfig
from resunet_ray.report.segmentation import find_unreported, write_segmentation_report
from resunet_ray.segment.export.files import export_runs
from resunet_ray.segment.run import SegmentationResult, segment
from resunet_ray.tasks import run_tasks


@dataclass(frozen=True)
class ArchiveResult:
    """What a job did."""

    status: Literal["planned", "nothing to do", "done", "too many errors"]
    result: SegmentationResult
    """Of the newest run that did something."""
    finished_runs: list[str] = field(default_factory=list)
    """Runs that were interrupted earlier and are finished now."""
    report: str | None = None
    """The page of the newest run; None if no page was written."""


def segment_archive(config: SegmentConfig) -> ArchiveResult:
    """Segment what is new, finish interrupted runs, and write exports and a report for each run.

    Raises:
        LeaseError: another run is writing to the output.
        ResUNetRayError: as `segment` does.
    """
    output = storage.absolute(config.output)
    unreported = find_unreported(output)
    *earlier, result = segment(config)
    if config.dry_run:
        return ArchiveResult("planned", result)
    if result.run_id is None and earlier:  # an earlier run had planned everything
        result = earlier.pop()
    done = [run.run_id for run in [*earlier, result] if run.run_id is not None]
    report = None
    for run_id in [*unreported, *done]:
        if config.actors != 0:
            connect()
        if config.export:
            export_runs(output, kinds=config.export, run_ids=[run_id])
        report = _write_report(output, run_id)  # last: it marks the run as complete
    failed = max(run.error_fraction for run in [*earlier, result]) > config.max_error_fraction
    status: Literal["done", "nothing to do", "too many errors"]
    status = "too many errors" if failed else "nothing to do" if result.run_id is None else "done"
    return ArchiveResult(status, result, [str(run.run_id) for run in earlier], report)


def export_archive(config: ExportConfig) -> int:
    """Write files for other programs from the tables of some runs; return how many.

    Raises:
        InputError: a run does not exist, or there is none.
    """
    connect()
    return export_runs(storage.absolute(config.output), kinds=config.format, run_ids=config.run)


def _write_report(output: str, run_id: str) -> str:
    """Write the page, on a node of the cluster if possible: it decodes untrusted images."""

    def write(_: int) -> pa.Table:
        return pa.table({"uri": [write_segmentation_report(output, run_id=run_id)]})

    return str(run_tasks(write, count=1, total=1, what="reports written")["uri"][0])
