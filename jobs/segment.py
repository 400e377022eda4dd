"""Segment archives of images into Parquet: masks, nuclei and scores. The same command again does only what is new.

`give-up` as the first word removes all that a run wrote.
"""

import sys
from typing import Any

from _job import read_config, run_job
from export import export

from resunet_ray.archive import segment_archive
from resunet_ray.config import GiveUpConfig, SegmentConfig
from resunet_ray.errors import LeaseError
from resunet_ray.segment.give_up import give_up


def _give_up() -> dict[str, Any]:
    config = read_config(
        GiveUpConfig, description=GiveUpConfig.__doc__ or "", arguments=sys.argv[2:]
    )
    give_up(config)
    return {"run": config.run}


def _work() -> dict[str, Any]:
    config = read_config(SegmentConfig, description=__doc__ or "", saved="run.json")
    try:
        done = segment_archive(config)
    except LeaseError as error:
        return {"status": "leased", "message": str(error)}
    line = {"status": done.status, **vars(done.result), "finished_runs": done.finished_runs}
    line |= {} if done.report is None else {"report": done.report}
    return line | ({"exit_code": 3} if done.status == "too many errors" else {})


def _export() -> dict[str, Any]:
    """As version 0.1.0 had it."""
    return export(sys.argv[2:])


if __name__ == "__main__":
    run_job("segment", {"export": _export, "give-up": _give_up}.get("".join(sys.argv[1:2]), _work))
