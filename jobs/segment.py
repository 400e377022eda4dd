"""Segment archives of images into Parquet: masks, nuclei and scores. The same command again does only what is new.

`export` as the first word writes files for other programs from an earlier output, `give-up` removes all that a run wrote.
"""

import sys
from typing import Any

import pyarrow as pa
from _job import read_config, run_job

from resunet_ray import storage
from resunet_ray.cluster import connect
from resunet_ray.config import ExportConfig, GiveUpConfig, SegmentConfig
from resunet_ray.data.stream import run_tasks
from resunet_ray.errors import LeaseError
from resunet_ray.report.segmentation import find_unreported, write_segmentation_report
from resunet_ray.segment.export.files import export_runs
from resunet_ray.segment.give_up import give_up
from resunet_ray.segment.run import segment


def _export() -> dict[str, Any]:
    config = read_config(ExportConfig, description=ExportConfig.__doc__ or "", arguments=sys.argv[2:])
    connect()
    return {"files": export_runs(storage.absolute(config.output), kinds=config.format, run_ids=config.run)}


def _give_up() -> dict[str, Any]:
    config = read_config(GiveUpConfig, description=GiveUpConfig.__doc__ or "", arguments=sys.argv[2:])
    give_up(config)
    return {"run": config.run}


def _report(output: str, run_id: str, *, here: bool) -> str:
    """Writes it on one of the nodes that segmented: it decodes images that nobody vouches for."""
    if not here:
        connect()

    def write(_: int) -> pa.Table:
        return pa.table({"uri": [write_segmentation_report(output, run_id=run_id)]})

    return str(run_tasks(write, count=1, total=1, what="reports written")["uri"][0])


def _work() -> dict[str, Any]:
    config = read_config(SegmentConfig, description=__doc__ or "", saved="run.json")
    output = storage.absolute(config.output)
    unreported = find_unreported(output)
    try:
        *earlier, result = segment(config)
    except LeaseError as error:
        return {"status": "leased", "message": str(error)}
    if result.run_id is None and earlier:  # all that was to do had been begun before
        result = earlier.pop()
    status = "planned" if config.dry_run else "done" if result.run_id is not None else "nothing to do"
    failed = max(run.error_fraction for run in [*earlier, result])
    line = {"status": status, **vars(result), "finished_runs": [run.run_id for run in earlier]}
    done = [run.run_id for run in [*earlier, result] if run.run_id is not None]
    for run_id in [] if config.dry_run else [*unreported, *done]:
        if config.export:
            connect()
            export_runs(output, kinds=config.export, run_ids=[run_id])
        line["report"] = _report(output, run_id, here=config.actors == 0)  # last: where it is, all of the run is
    return line | ({"exit_code": 3, "status": "too many errors"} if failed > config.max_error_fraction else {})


if __name__ == "__main__":
    run_job("segment", {"export": _export, "give-up": _give_up}.get("".join(sys.argv[1:2]), _work))
