"""Turn labelled images of any known layout into the Parquet shards that training reads."""

from dataclasses import asdict
from typing import Any

from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import PrepareConfig
from resunet_ray.data.prepare import prepare


def _work() -> dict[str, Any]:
    config = read_config(PrepareConfig, description=__doc__ or "", saved="dataset.json")
    return asdict(prepare(config))


if __name__ == "__main__":
    run_job("prepare", _work)
