"""Check, before training starts, that the cluster has room for it."""

from resunet_ray.cluster import count_gpus, wait_for_resources
from resunet_ray.config import TrainConfig
from resunet_ray.train.crops import crop_bytes, portion_rows

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
