"""The results of a sweep: its tables, and the winner's bundle, which names the sweep."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from resunet_ray import storage
from resunet_ray.bundle import load_bundle
from resunet_ray.bundle_info import BUNDLE_FILE, copy_bundle, read_bundle_info
from resunet_ray.config import SweepConfig, lower_is_better
from resunet_ray.errors import RunError
from resunet_ray.sweep.space import Space, apply
from resunet_ray.sweep.study import measure_importance
from resunet_ray.sweep.trials import Trial, tabulate
from resunet_ray.train.trainer import train

logger = logging.getLogger(__name__)

TABLE_FILE, SUMMARY_FILE = "trials.parquet", "summary.json"

_FINAL_FOLDER = "final"


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep."""

    bundle: str
    """Location of the winner's bundle."""
    trials: dict[str, int]
    """Number of trials by status."""
    best: dict[str, Any]
    """The winner: `trial`, `parameters`, `epoch`, `score` and `final_scores`, which holds one score
    per seed if the winner was trained again, else None."""


def conclude(
    config: SweepConfig, space: Space, trials: Sequence[Trial], *, lease: storage.Lease
) -> SweepResult:
    """Write trials.parquet, trials.csv and summary.json, and the winner's bundle.

    Args:
        config: of the sweep.
        space: that was searched.
        trials: all of the sweep.
        lease: of the sweep's output.

    Raises:
        RunError: no trial trained to its last epoch, or the winner's final training failed.
    """
    output, monitor = config.training.output, config.training.monitor
    table = tabulate(output, trials, training=config.training)
    rows = table.to_pandas()
    storage.write_table(storage.join(output, TABLE_FILE), table)
    storage.write_bytes(storage.join(output, "trials.csv"), rows.to_csv(index=False).encode())
    counts = dict(Counter(str(trial.status) for trial in trials))
    summary = {
        "trials": counts,
        "monitor": monitor,
        "importance": measure_importance(config, space, trials),
    }
    completed = rows[rows["status"] == "completed"].sort_values(
        "score", ascending=lower_is_better(monitor), kind="stable"
    )
    if completed.empty:
        _save_summary(output, summary | {"best": None, "bundle": None, "config": asdict(config)})
        reasons = "; ".join(
            sorted({trial.reason for trial in trials if trial.status == "failed" and trial.reason})
        )
        raise RunError(
            f"no trial trained to its last epoch{f': {reasons}' if reasons else ''}. "
            f"{output}/trials.csv lists all {len(trials)}"
        )
    winner = completed.iloc[0]
    trial = trials[int(winner["trial"])]
    best = {
        "trial": trial.number,
        "parameters": trial.parameters,
        "epoch": int(winner["epoch"]),
        "score": float(winner["score"]),
    }
    source, best["final_scores"] = _train_finally(
        config, trial, bundle=str(winner["bundle"]), lease=lease
    )
    lease.check()
    bundle = storage.join(output, "bundle")
    _save_bundle(
        bundle,
        source=source,
        provenance={"sweep": {"output": output, "trials": len(trials), **best}},
    )
    _save_summary(output, summary | {"best": best, "bundle": bundle, "config": asdict(config)})
    return SweepResult(bundle, counts, best)


def _save_summary(output: str, summary: dict[str, Any]) -> None:
    storage.write_bytes(storage.join(output, SUMMARY_FILE), json.dumps(summary, indent=2).encode())


def _train_finally(
    config: SweepConfig, trial: Trial, *, bundle: str, lease: storage.Lease
) -> tuple[str, list[float] | None]:
    """Train the winner again if the configuration says so.

    Returns:
        The best bundle and the score of each seed; without final training, the trial's own
        bundle and None.
    """
    if config.final_epochs is None and config.final_seeds == 1:
        return bundle, None
    monitor = config.training.monitor
    chosen = apply(config.training, trial.parameters)
    scores: dict[str, float] = {}
    for seed in range(chosen.seed, chosen.seed + config.final_seeds):
        epochs = config.final_epochs or chosen.epochs
        logger.info(
            "training trial %d's settings with seed %d for %d epochs", trial.number, seed, epochs
        )
        name = f"{trial.name}-seed-{seed}-epochs-{epochs}"
        trained = train(
            replace(
                chosen,
                output=storage.join(config.training.output, _FINAL_FOLDER),
                name=name,
                seed=seed,
                epochs=epochs,
            ),
            lease=lease,
        )
        scores[trained.bundle] = trained.best[monitor]
    choose = min if lower_is_better(monitor) else max
    return choose(scores, key=lambda uri: scores[uri]), list(scores.values())


def _save_bundle(uri: str, *, source: str, provenance: dict[str, Any]) -> None:
    if storage.exists(storage.join(uri, BUNDLE_FILE)):
        before = read_bundle_info(uri)[0]
        if (
            before.sha256 == read_bundle_info(source)[0].sha256
            and before.provenance.get("sweep") == provenance["sweep"]
        ):
            return
    copy_bundle(source, uri, provenance=provenance)
    load_bundle(uri).self_test()
    logger.info("wrote %s", uri)
