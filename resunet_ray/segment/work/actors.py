"""The actors of a run: how many there are, what each takes, and their chunks as they are done."""

import logging
from collections.abc import Iterator
from contextlib import closing

import ray.data

from resunet_ray.cluster import (
    count_cpu_nodes,
    count_gpus,
    environment_for,
    has_autoscaler,
    wait_for_resources,
)
from resunet_ray.config import SegmentConfig
from resunet_ray.monitoring import count_chunk, show_chunks
from resunet_ray.progress import show_progress
from resunet_ray.segment.planning.plan import count_regions
from resunet_ray.segment.work.segmenter import CALLS, Segmenter
from resunet_ray.segment.work.spec import RunSpec
from resunet_ray.segment.work.sums import ChunkResult, ChunkSums, stage_seconds
from resunet_ray.storage import Lease
from resunet_ray.tasks import count_up

logger = logging.getLogger(__name__)


def uses_gpu(config: SegmentConfig) -> bool:
    """Whether each actor gets a GPU."""
    if config.gpu != "auto":
        return config.gpu == "on"
    if config.actors != 0:
        return count_gpus() > 0
    import torch  # not above: only what holds the network needs it, and it takes seconds

    return torch.cuda.is_available()


def segment_chunks(spec: RunSpec, *, unit: str, lease: Lease) -> ChunkSums:
    """Segment the chunks of a run and show the progress.

    This happens on the cluster, or with `--actors 0` in this process.

    Args:
        spec: of the run.
        unit: what regions are called in the progress line.
        lease: of the output.

    Raises:
        ResourceError: the cluster has no room for the actors.
        RunError: the lease was lost.
    """
    here = spec.config.actors == 0
    actors = 1 if here else _count_actors(spec)
    sums = ChunkSums(actors=actors)
    if not spec.chunks:
        return sums
    results = _map_chunks_here(spec) if here else _map_chunks(spec, actors=actors)
    with (
        show_chunks(spec.watched, lambda: len(spec.chunks) - sums.chunks),
        show_progress(f"{unit} segmented", total=count_regions(spec.folder, spec.chunks)) as line,
    ):
        for result in results:
            before = sums.regions
            _note(result, spec=spec, sums=sums)
            line.advance(sums.regions - before, note=f"{sums.failed} failed", begun=sums.begun)
            lease.check()
    return sums


def _count_actors(spec: RunSpec) -> int:
    per_gpu = spec.config.actors_per_gpu
    wanted = spec.config.actors or (count_gpus() * per_gpu if spec.gpu else count_cpu_nodes())
    return max(1, min(wanted, len(spec.chunks)))


def _map_chunks_here(spec: RunSpec) -> Iterator[ChunkResult]:
    with closing(Segmenter(spec)) as segmenter:
        for chunk in spec.chunks:
            yield segmenter.segment_chunk(chunk)


def _map_chunks(spec: RunSpec, *, actors: int) -> Iterator[ChunkResult]:
    """Yield the results of the cluster's actors as they come in."""
    config = spec.config
    each = {"CPU": config.cpus_per_actor, **({"GPU": spec.gpus} if spec.gpu else {})}
    # One actor is enough to begin with where nodes may still be added: more start as nodes come.
    at_once = 1 if config.nodes_seconds or has_autoscaler() else actors
    wait_for_resources(
        [each] * at_once + [{"CPU": 1}],
        what=f"{actors} segmenting actors of {config.cpus_per_actor} CPUs, with one CPU left for "
        "Ray Data",
        nodes_seconds=config.nodes_seconds,
    )
    where = "a GPU" if spec.gpu else f"{spec.threads or 'all'} CPU cores: there is no GPU"
    logger.info("%d actor%s, each on %s", actors, "s" if actors > 1 else "", where)
    data = count_up(len(spec.chunks)).map_batches(
        Segmenter,
        fn_constructor_args=(spec,),
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=actors,
            enable_true_multi_threading=True,
            max_concurrent_calls_per_actor=CALLS,
        ),
        runtime_env=environment_for(config.engine, gpu=spec.gpu),
        num_cpus=config.cpus_per_actor,
        num_gpus=spec.gpus,
        batch_size=1,  # one number; Ray Data refuses None with GPUs
    )
    for table in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from ChunkResult.from_table(table)


def _note(result: ChunkResult, *, spec: RunSpec, sums: ChunkSums) -> None:
    """Count a chunk that is done, for the progress line and for Prometheus."""
    before = sums.network_seconds
    sums.add(result)
    count_chunk(
        spec.watched,
        outcomes=result.outcomes,
        pixels=result.pixels,
        seconds=stage_seconds(result.seconds),
        network_seconds=sums.network_seconds - before,
    )
