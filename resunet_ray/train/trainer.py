"""One training run, from the first checks to the bundle; the same command resumes a run."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from resunet_ray import bundles, storage
from resunet_ray.bundle import Bundle, save_bundle
from resunet_ray.bundle_info import BUNDLE_FILE, BundleInfo, read_bundle_info, versions
from resunet_ray.cluster import MODEL_ENVIRONMENT, connect
from resunet_ray.config import PrepareConfig, TrainConfig, lower_is_better
from resunet_ray.config.roles import MAY_CHANGE, list_fields
from resunet_ray.data.dataset import DATASET_FILE, Dataset, open_dataset, plan_once
from resunet_ray.data.labelled import read_images
from resunet_ray.data.prepare import prepare
from resunet_ray.data.splits import TRAIN, VAL
from resunet_ray.errors import RunError
from resunet_ray.model.instances import choose_method
from resunet_ray.model.metrics import SCORE_NAMES
from resunet_ray.progress import is_verbose
from resunet_ray.train.batches import epoch_size, require_modalities
from resunet_ray.train.calibration import calibrate
from resunet_ray.train.checkpoint import load_weights, require_snapshot
from resunet_ray.train.loop import FAILURE_FILE, train_worker
from resunet_ray.train.relay import FailureTeller, cause, show_training
from resunet_ray.train.requirements import (
    check_init_and_mlflow,
    leave_out_heads,
    require_instances,
    uses_gpu,
    wait_for_workers,
)
from resunet_ray.train.saved_settings import write_settings_once
from resunet_ray.train.tracking import HISTORY_FILE, read_history, run_folder

logger = logging.getLogger(__name__)

_CONFIG_FILE = "train.json"
_SAMPLE_SIDE = 96  # pixels: small, and more than the context of one tile


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run."""

    bundle: str
    epochs: int
    best: dict[str, float]
    images_per_second: float


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[UserCallback] = (),
    lease: storage.Lease | None = None,
) -> TrainingResult:
    """Train, and write `bundle/` into the run's folder; do nothing if it already exists.

    Settings and data are checked before Ray starts.

    Args:
        config: configuration of the run.
        callbacks: Ray Train callbacks, called after each validation.
        lease: held by the caller, over a place around the run's folder; None: one is taken.

    Raises:
        ConfigError: the output holds a run with other settings.
        InputError: the data or the bundle to start from is missing or unsuitable.
        LeaseError: another process is training this run.
        ResourceError: the cluster or the storage lacks what the run needs.
        RunError: training failed and retries did not help, or the lease was lost.
    """
    config = resolve(config)
    with storage.hold_output(config, run_folder(config), held=lease) as held:
        return _train(config, callbacks, held)


def _train(
    config: TrainConfig, callbacks: Sequence[UserCallback], lease: storage.Lease
) -> TrainingResult:
    own = storage.join(run_folder(config), "data")
    prepared = prepare_if_folder(config.data, own=own, lease=lease)
    dataset = open_dataset(prepared, needs=(TRAIN, VAL))
    require_modalities(dataset, config)
    require_instances(dataset, config)
    bundle_uri = storage.join(run_folder(config), "bundle")
    finished = storage.exists(storage.join(bundle_uri, BUNDLE_FILE))
    if not finished:
        check_init_and_mlflow(config)
        connect()
        wait_for_workers(config)
    write_settings_once(
        storage.join(run_folder(config), _CONFIG_FILE),
        config,
        data_digest=dataset.digest,
        free=list_fields(TrainConfig, MAY_CHANGE),
        advice="give another --output or --name, or the same settings to resume it",
    )
    if finished:
        logger.info("%s already exists: nothing to do", bundle_uri)
        return _summary(config, bundle_uri)
    require_snapshot(run_folder(config))
    config = leave_out_heads(dataset, config)
    checkpoint, scores = _fit(config, dataset, callbacks, lease)
    lease.check()
    _save_bundle(bundle_uri, config=config, dataset=dataset, checkpoint=checkpoint, scores=scores)
    return _summary(config, bundle_uri)


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the configuration with every location made absolute."""
    return replace(
        config,
        data=storage.absolute(config.data).rstrip("/"),
        output=storage.absolute(config.output).rstrip("/"),
        init=None if config.init is None else bundles.absolute(config.init),
    )


def prepare_if_folder(data: str, *, own: str, lease: storage.Lease) -> str:
    """Return the location of a prepared data set.

    This is `data` itself, unless `data` is a plain folder of images and masks: then it is prepared
    at `own`, with the defaults of `prepare`, under a lease that the caller holds.
    """
    if storage.exists(storage.join(data, DATASET_FILE)) or not storage.exists(
        storage.join(data, "images")
    ):
        return data
    if not storage.exists(storage.join(own, DATASET_FILE)):
        logger.info("%s is a folder of images: preparing it in %s", data, own)
        prepare(PrepareConfig(input=(data,), output=own), lease=lease)
    return own


def _fit(
    config: TrainConfig,
    dataset: Dataset,
    callbacks: Sequence[UserCallback],
    lease: storage.Lease,
) -> tuple[ray.train.Checkpoint, dict[str, float]]:
    # Ray Train reads these from the driver's environment when it starts the run.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(config.start_timeout_seconds)
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "1800")
    # How soon Ray Train registers a checkpoint, and notices the end of the run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    failure = storage.join(run_folder(config), FAILURE_FILE)
    storage.delete_file(failure)
    with show_training(config, images=config.epochs * epoch_size(dataset, config)) as board:
        tellers = [FailureTeller(board)] if board is not None else []
        settings = {"config": config, "dataset": dataset, "board": board, "lease": lease}
        trainer = _build_trainer(config, settings, callbacks=[*callbacks, *tellers])
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            inner = next(iter(getattr(error, "worker_failures", {}).values()), error)
            raise RunError(f"training failed: {storage.mask_credentials(cause(inner))}") from error
        if storage.exists(failure):
            raise RunError(f"training failed: {storage.read_bytes(failure).decode()}")
    best = result.get_best_checkpoint(
        config.monitor, "min" if lower_is_better(config.monitor) else "max"
    )
    assert best is not None, "every run reports a checkpoint after its last epoch"
    scores = next(
        metrics for checkpoint, metrics in result.best_checkpoints or [] if checkpoint == best
    )
    return best, scores


def _build_trainer(
    config: TrainConfig, settings: dict[str, Any], *, callbacks: list[UserCallback]
) -> TorchTrainer:
    gpu = uses_gpu(config)
    filesystem, path = storage.open_portable(config.output)
    workers: int | tuple[int, int] = config.workers
    if config.min_workers is not None and config.min_workers < config.workers:
        workers = (config.min_workers, config.workers)
    return TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=callbacks,
            worker_runtime_env=MODEL_ENVIRONMENT,
            logging_config=LoggingConfig(log_level="INFO" if is_verbose() else "WARNING"),
            failure_config=FailureConfig(
                max_failures=config.max_failures, controller_failure_limit=config.max_failures
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.keep_checkpoints,
                checkpoint_score_attribute=config.monitor,
                checkpoint_score_order="min" if lower_is_better(config.monitor) else "max",
            ),
        ),
    )


def _save_bundle(
    uri: str,
    *,
    config: TrainConfig,
    dataset: Dataset,
    checkpoint: ray.train.Checkpoint,
    scores: dict[str, float],
) -> Bundle:
    """Save the best checkpoint as a bundle.

    Its threshold is that of the checkpoint's validation; see `calibrate` for what else is chosen.
    """
    with checkpoint.as_directory() as folder:
        weights = load_weights(Path(folder))
    info = BundleInfo(
        model=config.model,
        preprocess=config.preprocess,
        instances=replace(choose_method(config.model.heads), threshold=scores["threshold"]),
        mpp=dataset.mpp,
        scores={name: scores[name] for name in ("loss", *SCORE_NAMES, config.monitor)},
        provenance={
            "run": run_folder(config),
            "epoch": scores["epoch"],
            "data": dataset.uri,
            "data_digest": dataset.digest,
            "init": None if config.init is None else read_bundle_info(config.init)[1],
            "config": asdict(config),
            "versions": versions(),
        },
    )
    first = next(read_images(dataset, plan_once(dataset, VAL)[:1]))
    sample = first.image[:_SAMPLE_SIDE, :_SAMPLE_SIDE]
    draft = storage.join(run_folder(config), "draft")  # readable from every node
    info = calibrate(info, weights=weights, sample=sample, dataset=dataset, draft=draft)
    bundle = save_bundle(uri, weights=weights, info=info, sample=sample)
    bundle.self_test()
    if info.quantization:
        bundle.self_test("auto")
    storage.delete_folder(draft)
    logger.info("wrote %s", uri)
    return bundle


def _summary(config: TrainConfig, bundle_uri: str) -> TrainingResult:
    info, _ = read_bundle_info(bundle_uri)
    history = read_history(storage.join(run_folder(config), HISTORY_FILE))
    images = (history["seconds"] * history["images_per_second"]).sum()
    rate = round(float(images / history["seconds"].sum()), 3)
    return TrainingResult(
        bundle_uri, len(history), {**info.scores, "epoch": info.provenance["epoch"]}, rate
    )
