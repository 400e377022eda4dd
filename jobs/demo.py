"""Find nuclei in a real picture, then run the main steps on generated images.

Those are prepared, trained on, scored, segmented and reported on.
"""

from typing import Any

from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import DemoConfig
from resunet_ray.demo import run_demo


def _work() -> dict[str, Any]:
    result = run_demo(read_config(DemoConfig, description=__doc__ or ""))
    return {
        "bundle": result.bundle,
        **result.scores,
        "segmented": result.segmented,
        "report": result.report,
        "overlay": result.overlay,
    }


if __name__ == "__main__":
    run_job("demo", _work)
