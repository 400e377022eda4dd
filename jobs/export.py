"""Write files for other programs from what `jobs/segment.py` wrote."""

import sys
from collections.abc import Sequence
from typing import Any

from _job import read_config, run_job

from resunet_ray import storage
from resunet_ray.cluster import connect
from resunet_ray.config import ExportConfig
from resunet_ray.segment.export.files import export_runs


def export(arguments: Sequence[str]) -> dict[str, Any]:
    """Writes the exports that a command line asks for."""
    config = read_config(ExportConfig, description=__doc__ or "", arguments=arguments)
    connect()
    return {
        "files": export_runs(
            storage.absolute(config.output), kinds=config.format, run_ids=config.run
        )
    }


if __name__ == "__main__":
    run_job("export", lambda: export(sys.argv[1:]))
