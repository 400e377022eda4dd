"""Score a bundle against labelled images, and write a report."""

from typing import Any

from resunet_ray import storage
from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import EvaluateConfig
from resunet_ray.evaluate import evaluate
from resunet_ray.report.evaluation import find_history, write_evaluation_report


def _work() -> dict[str, Any]:
    config = read_config(EvaluateConfig, description=__doc__ or "", saved="summary.json")
    history = find_history(config)
    result = evaluate(config)
    report = write_evaluation_report(storage.absolute(config.output), history=history)
    return {
        "images": result.images,
        **result.scores,
        "pooled": result.pooled,
        "instance": result.instance,
        "by_modality": result.by_modality,
        "report": report,
    }


if __name__ == "__main__":
    run_job("evaluate", _work)
