"""Segment archives of images into Parquet tables: masks, nuclei and scores.

The same command again segments only what is new. `give-up` as the first word removes everything
that a run wrote.
"""

import sys
from typing import Any

from resunet_ray.archive import export_archive, segment_archive
from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import ExportConfig, GiveUpConfig, SegmentConfig
from resunet_ray.segment.give_up import give_up


def _work() -> dict[str, Any]:
    config = read_config(SegmentConfig, description=__doc__ or "", saved="run.json")
    done = segment_archive(config)
    line = {"status": done.status, **vars(done.result), "finished_runs": done.finished_runs}
    line |= {} if done.report is None else {"report": done.report}
    return line | ({"exit_code": 3} if done.status == "too many errors" else {})


def _give_up() -> dict[str, Any]:
    about = GiveUpConfig.__doc__ or ""
    config = read_config(GiveUpConfig, description=about, arguments=sys.argv[2:])
    give_up(config)
    return {"run": config.run}


def _export() -> dict[str, Any]:
    """Run jobs/export.py, which version 0.1.0 called `jobs/segment.py export`."""
    about = ExportConfig.__doc__ or ""
    config = read_config(ExportConfig, description=about, arguments=sys.argv[2:])
    return {"files": export_archive(config)}


if __name__ == "__main__":
    run_job("segment", {"export": _export, "give-up": _give_up}.get("".join(sys.argv[1:2]), _work))
