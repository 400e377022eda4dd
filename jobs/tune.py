"""Search the hyperparameters of training, and write the best trial's bundle.

The same command with the same output resumes.
"""

from functools import partial
from typing import Any

from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import RECIPES, SweepConfig
from resunet_ray.report.sweep import write_sweep_report
from resunet_ray.sweep.tuner import sweep


def _start(recipe: Any, **required: Any) -> SweepConfig:
    return SweepConfig(training=recipe(**required))


def _work() -> dict[str, Any]:
    config = read_config(
        SweepConfig,
        description=__doc__ or "",
        recipes={name: partial(_start, recipe) for name, recipe in RECIPES.items()},
        required=("data", "output"),
        saved="sweep.json",
    )
    result = sweep(config)
    return {**vars(result), "report": write_sweep_report(config.training.output)}


if __name__ == "__main__":
    run_job("tune", _work)
