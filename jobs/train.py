"""Train a ResUNet and write its bundle. The same command with the same output resumes."""

from dataclasses import asdict
from typing import Any

from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import RECIPES, TrainConfig
from resunet_ray.train.trainer import train


def _work() -> dict[str, Any]:
    config = read_config(
        TrainConfig,
        description=__doc__ or "",
        recipes=RECIPES,
        required=("data", "output"),
        saved="train.json",
    )
    return asdict(train(config))


if __name__ == "__main__":
    run_job("train", _work)
