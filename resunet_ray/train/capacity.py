"""What a training takes of the cluster, known before it starts."""

from resunet_ray.cluster import count_gpus, wait_for_resources
from resunet_ray.config import TrainConfig
from resunet_ray.train.crops import portion_rows

_BYTES_PER_PIXEL = 3600
"""Memory of a training step per pixel of its crops: 1.8 GiB measured at batch 8 of 256×256 in bf16."""


def uses_gpu(config: TrainConfig) -> bool:
    """Whether its workers take a GPU each."""
    return count_gpus() > 0 if config.gpu == "auto" else config.gpu == "on"


def wait_for_workers(
    config: TrainConfig, *, runs: int = 1, beside_gib: float = 0.0, wait: bool = True
) -> None:
    """Refuses training that the cluster cannot take.

    Args:
        config: of the run.
        runs: how many such runs go on at the same time.
        beside_gib: memory that is asked for beside them.
        wait: for what other jobs hold, and for nodes that an autoscaler adds.

    Raises:
        ResourceError: the workers of all runs do not fit beside one CPU for Ray Data.
    """
    workers = runs * (config.min_workers or config.workers)
    pixels = (config.preprocess.resize or config.crop) ** 2
    waiting = workers * (config.shuffle_buffer + 2 * portion_rows(config)) * pixels * 4
    gib = (runs * config.batch_size * pixels * _BYTES_PER_PIXEL + waiting) / 2**30
    gpu = uses_gpu(config)
    of_runs = f" ({runs} trials at once)" if runs > 1 else ""
    each = {"CPU": config.cpus_per_worker, **({"GPU": 1} if gpu else {})}
    wait_for_resources(
        [each] * workers + [{"CPU": 1}],
        what=f"{workers} training workers of {config.cpus_per_worker} CPUs{of_runs}, with one CPU left for Ray Data",
        memory_gib=beside_gib + (0.0 if gpu else gib),
        nodes_seconds=config.nodes_seconds,
        busy_seconds=config.start_timeout_seconds,
        wait=wait,
    )
