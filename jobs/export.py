"""Write files for other programs from the output of `jobs/segment.py`."""

from typing import Any

from resunet_ray.archive import export_archive
from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import ExportConfig


def _work() -> dict[str, Any]:
    config = read_config(ExportConfig, description=__doc__ or "")
    return {"files": export_archive(config)}


if __name__ == "__main__":
    run_job("export", _work)
