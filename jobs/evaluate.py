"""Score a bundle against labelled images and write its report."""

from typing import Any

from _job import read_config, run_job

from resunet_ray import bundles, storage
from resunet_ray.config import EvaluateConfig
from resunet_ray.errors import InputError
from resunet_ray.evaluate import evaluate
from resunet_ray.report.evaluation import write_evaluation_report
from resunet_ray.train.tracking import HISTORY_FILE


def _work() -> dict[str, Any]:
    config = read_config(EvaluateConfig, description=__doc__ or "", saved="summary.json")
    if config.history is not None and not storage.exists(config.history):
        raise InputError(
            f"--history {config.history} is not there: leave it out to use the one beside the bundle"
        )
    result = evaluate(config)
    history = config.history or storage.join(
        storage.parent(bundles.locate(config.bundle)), HISTORY_FILE
    )
    report = write_evaluation_report(
        storage.absolute(config.output), history=history if storage.exists(history) else None
    )
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
