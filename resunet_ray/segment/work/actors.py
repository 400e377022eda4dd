"""The actors of a run at work: how many, what they take, and their chunks as these come in."""

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch

from resunet_ray.cluster import (
    MODEL_ENVIRONMENT,
    count_cpu_nodes,
    count_gpus,
    has_autoscaler,
    wait_for_resources,
)
from resunet_ray.config import SegmentConfig
from resunet_ray.monitoring import count_chunk, show_chunks
from resunet_ray.progress import show_progress
from resunet_ray.segment.planning.plan import count_regions
from resunet_ray.segment.work.job import Job
from resunet_ray.segment.work.segmenter import CALLS, Segmenter
from resunet_ray.segment.work.sums import ChunkSums
from resunet_ray.storage import Lease
from resunet_ray.tasks import count_up

logger = logging.getLogger(__name__)


def uses_gpu(config: SegmentConfig) -> bool:
    """Whether each model process has a GPU."""
    if config.gpu != "auto":
        return config.gpu == "on"
    return torch.cuda.is_available() if config.actors == 0 else count_gpus() > 0


def segment_chunks(job: Job, *, unit: str, lease: Lease | None) -> ChunkSums:
    """Runs the chunks of a job, on the cluster or with `--actors 0` in this process, and shows how far it is.

    Args:
        job: what to do.
        unit: what regions are called.
        lease: of the output.

    Raises:
        ResourceError: the cluster cannot take the actors.
        RunError: the lease was lost.
    """
    here = job.config.actors == 0
    actors = (
        1
        if here
        else max(
            1,
            min(
                job.config.actors or (count_gpus() if job.gpu else count_cpu_nodes()),
                len(job.chunks),
            ),
        )
    )
    sums = ChunkSums(actors=actors)
    if not job.chunks:
        return sums
    batches = _map_chunks_here(job) if here else _map_chunks(job, actors=actors)
    with (
        show_chunks(job.watched, lambda: len(job.chunks) - sums.chunks),
        show_progress(f"{unit} segmented", total=count_regions(job.folder, job.chunks)) as line,
    ):
        for batch in batches:
            before = sums.regions
            for chunk in batch.to_pylist():
                _note({**chunk, "outcomes": json.loads(chunk["outcomes"])}, job=job, sums=sums)
            line.advance(sums.regions - before, note=f"{sums.failed} failed", begun=sums.begun)
            if lease is not None:
                lease.check()
    return sums


def _map_chunks_here(job: Job) -> Iterator[pa.Table]:
    """What becomes of each chunk, lazily, one after the other."""
    with closing(Segmenter(job)) as segmenter:
        for number in range(len(job.chunks)):
            yield segmenter({"id": np.array([number])})


def _map_chunks(job: Job, *, actors: int) -> Iterator[pa.Table]:
    """What becomes of each chunk, lazily, as they come in from the cluster's actors."""
    config = job.config
    each = {"CPU": config.cpus_per_actor, **({"GPU": 1} if job.gpu else {})}
    wait_for_resources(
        [each] * (1 if config.nodes_seconds or has_autoscaler() else actors)
        + [{"CPU": 1}],  # more actors start as nodes come
        what=f"{actors} segmenting actors of {config.cpus_per_actor} CPUs, with one CPU left for Ray Data",
        nodes_seconds=config.nodes_seconds,
    )
    where = "a GPU" if job.gpu else f"{job.threads or 'all'} CPU cores: there is no GPU"
    logger.info("%d actor%s, each on %s", actors, "s" if actors > 1 else "", where)
    data = count_up(len(job.chunks)).map_batches(
        Segmenter,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=actors,
            enable_true_multi_threading=True,
            max_concurrent_calls_per_actor=CALLS,
        ),
        runtime_env=MODEL_ENVIRONMENT,
        num_cpus=config.cpus_per_actor,
        num_gpus=1 if job.gpu else 0,
        batch_size=1,  # of one number: with GPUs Ray Data refuses None
    )
    batches: Iterator[pa.Table] = data.iter_batches(batch_size=None, batch_format="pyarrow")
    return batches


def _note(chunk: dict[str, Any], *, job: Job, sums: ChunkSums) -> None:
    """Counts a chunk that is done, for the log and for Prometheus."""
    before = sums.network_seconds
    sums.add(chunk)
    count_chunk(
        job.watched,
        outcomes=chunk["outcomes"],
        pixels=chunk["pixels"],
        seconds={stage: chunk[f"{stage}_seconds"] for stage in sums.stages},
        network_seconds=sums.network_seconds - before,
    )
