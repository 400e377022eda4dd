"""What a run needs, checked before it starts: room on the cluster, data, a bundle to start from."""

import logging
from dataclasses import replace

from resunet_ray.bundle import load_bundle
from resunet_ray.cluster import count_gpus, wait_for_resources
from resunet_ray.config import TrainConfig
from resunet_ray.data.dataset import Dataset
from resunet_ray.data.splits import TRAIN, VAL
from resunet_ray.errors import ConfigError, InputError
from resunet_ray.model.resunet import build_network
from resunet_ray.train.crops import crop_bytes, portion_rows
from resunet_ray.train.session import start_from
from resunet_ray.train.tracking import import_mlflow
from resunet_ray.train.validation import INSTANCE_SCORES

_BYTES_PER_PIXEL = 3600
"""Memory of a training step per pixel of its crops: 1.8 GiB measured with a batch of 8 crops of
256×256 in bf16."""


def uses_gpu(config: TrainConfig) -> bool:
    """Whether each training worker uses a GPU."""
    return count_gpus() > 0 if config.gpu == "auto" else config.gpu == "on"


def wait_for_workers(
    config: TrainConfig, *, runs: int = 1, beside_gib: float = 0.0, wait: bool = True
) -> None:
    """Wait until the cluster has room for the training workers.

    Args:
        config: configuration of the run.
        runs: number of such runs that train at the same time.
        beside_gib: memory to request in addition to that of the workers, GiB.
        wait: whether to wait for resources that other jobs hold and for nodes that an autoscaler
            adds. If False, only check that the cluster is large enough.

    Raises:
        ResourceError: the workers of all runs, and one CPU for Ray Data, do not fit.
    """
    workers = runs * (config.min_workers or config.workers)
    pixels = (config.preprocess.resize or config.crop) ** 2
    crops = workers * (config.shuffle_buffer + 2 * portion_rows(config))
    gib = (
        runs * config.batch_size * pixels * _BYTES_PER_PIXEL + crops * crop_bytes(config)
    ) / 2**30
    gpu = uses_gpu(config)
    trials = f" ({runs} trials at once)" if runs > 1 else ""
    each = {"CPU": config.cpus_per_worker, **({"GPU": 1} if gpu else {})}
    wait_for_resources(
        [each] * workers + [{"CPU": 1}],
        what=f"{workers} training workers of {config.cpus_per_worker} CPUs{trials}, "
        "with one CPU left for Ray Data",
        memory_gib=beside_gib + (0.0 if gpu else gib),
        nodes_seconds=config.nodes_seconds,
        busy_seconds=config.start_timeout_seconds,
        wait=wait,
    )


logger = logging.getLogger(__name__)


def check_init_and_mlflow(config: TrainConfig) -> None:
    """Check that the bundle to start from fits the run, and that MLflow is installed if needed.

    Raises:
        ConfigError: MLflow is asked for but not installed, or the bundle does not fit the network
            or was trained at another intensity scale.
        InputError: the bundle is missing or damaged.
    """
    if config.init is not None:
        start = load_bundle(config.init)
        start_from(build_network(config.model), start.network.state_dict())
        if (seen := start.info.preprocess.intensity) != config.preprocess.intensity:
            raise ConfigError(
                f"--init {config.init} was trained on images at the intensity scale {seen!r}, but "
                f"this run uses {config.preprocess.intensity!r}: give --preprocess.intensity {seen}"
            )
    if config.mlflow is not None:
        import_mlflow()


def require_instances(dataset: Dataset, config: TrainConfig) -> None:
    """Refuse to monitor a score of instances if no validation image has any.

    Raises:
        InputError: none has.
    """
    images = dataset.splits[VAL]
    if config.monitor in INSTANCE_SCORES and dataset.count_missing(VAL, "labels") == images:
        raise InputError(
            f"--monitor {config.monitor} compares instances, but none of the {images} validation "
            f"images of {dataset.uri} has any: prepare the data with instances/, or give "
            "--monitor f1"
        )


def leave_out_heads(dataset: Dataset, config: TrainConfig) -> TrainConfig:
    """Return the configuration without heads if no training image tells its nuclei apart.

    A warning names the data set.
    """
    heads, images = config.model.heads, dataset.splits[TRAIN]
    missing = dataset.count_missing(TRAIN, "labels") if heads else 0
    if not missing:
        return config
    if missing < images:
        logger.warning(
            "%d of %d training images of %s have no instances: they train the mask alone",
            missing,
            images,
            dataset.uri,
        )
        return config
    logger.warning(
        "none of the %d training images of %s has instances, which --model.heads %s learn from: "
        "training the mask alone",
        images,
        dataset.uri,
        " ".join(heads),
    )
    return replace(config, model=replace(config.model, heads=()))
