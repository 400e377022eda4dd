"""A bundle over the labelled images of a split: each predicted once and scored, on CPUs or GPUs."""

from collections.abc import Callable

import pyarrow as pa
import ray.data
import torch

from resunet_ray.bundle import Bundle, load_bundle
from resunet_ray.cluster import (
    connect,
    count_cores,
    count_gpus,
    environment_for,
    wait_for_resources,
)
from resunet_ray.config.model import Engine
from resunet_ray.data.dataset import Dataset, Span, plan_once
from resunet_ray.data.labelled import LabelledImage, read_images
from resunet_ray.tasks import Columns, count_up

Score = Callable[[Bundle, list[LabelledImage]], pa.Table]
"""A bundle and a block of images → one row of scores per image."""


def score_split(
    dataset: Dataset,
    split: str,
    *,
    bundle: str,
    score: Score,
    actors: int | None = None,
    engine: Engine = "auto",
) -> ray.data.Dataset:
    """Return a lazy Ray Data set with one row per image.

    Args:
        dataset: the data set.
        split: name of the split.
        bundle: location of the bundle.
        score: predicts and scores a block of images.
        actors: maximum number of processes that hold the network. None: one per GPU, or a single
            one with all cores.
        engine: what computes the network on CPUs.

    Raises:
        ResourceError: the actors do not fit beside Ray Data's own CPU.
    """
    connect()
    gpus = count_gpus()
    spans = plan_once(dataset, split)
    actors = min(actors or max(1, gpus), len(spans))
    each = {"CPU": 1, **({"GPU": 1} if gpus else {})}
    wait_for_resources(
        [each] * actors + [{"CPU": 1}],
        what=f"{actors} scoring actors, with one CPU left for Ray Data",
    )
    return count_up(len(spans)).map_batches(
        _Scorer,
        fn_constructor_args=(dataset, spans, bundle, score, actors, engine),
        compute=ray.data.ActorPoolStrategy(size=actors),
        runtime_env=environment_for(engine, gpu=gpus > 0),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        batch_size=1,  # the number of one span; with GPUs Ray Data refuses None
    )


class _Scorer:
    """The actor: loads the bundle once, then reads and scores one span after another."""

    def __init__(
        self,
        dataset: Dataset,
        spans: list[Span],
        bundle: str,
        score: Score,
        actors: int,
        engine: Engine,
    ) -> None:
        torch.set_num_threads(max(1, count_cores() // actors))
        self._dataset, self._spans, self._score = dataset, spans, score
        self._bundle = load_bundle(
            bundle,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            engine=engine,
        )

    def __call__(self, batch: Columns) -> pa.Table:
        spans = [self._spans[number] for number in batch["id"]]
        return self._score(self._bundle, list(read_images(self._dataset, spans)))
