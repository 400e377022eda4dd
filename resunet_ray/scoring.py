"""A bundle over the labelled images of a split: each image predicted once and turned into one row, on CPUs or GPUs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from jaxtyping import Float32

from resunet_ray.bundle import Bundle, load_bundle
from resunet_ray.cluster import (
    MODEL_ENVIRONMENT,
    connect,
    count_cores,
    count_gpus,
    wait_for_resources,
)
from resunet_ray.data.dataset import Dataset, Row, Span, plan_once
from resunet_ray.data.labelled import LabelledImage, read_images
from resunet_ray.data.stream import count_up

Score = Callable[[Bundle, LabelledImage, Float32[np.ndarray, "h w"]], Row]
"""Bundle, image with its truth, probability → one row."""


def score_split(
    dataset: Dataset,
    split: str,
    *,
    bundle: str,
    score: Score,
    schema: pa.Schema,
    predict: Callable[[Bundle, list[LabelledImage]], list[Float32[np.ndarray, "_h _w"]]],
    actors: int | None = None,
) -> ray.data.Dataset:
    """A lazy Ray Data set with one row an image.

    Args:
        dataset: the data.
        split: which of its splits.
        bundle: where the bundle is.
        score: makes the row.
        schema: of the rows.
        predict: makes the probabilities of a block of images.
        actors: processes that hold the network, at most. None: one for each GPU, or one with every core.

    Raises:
        ResourceError: so many do not fit beside Ray Data's own CPU.
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
        fn_constructor_args=(dataset, spans, bundle, score, schema, predict, actors),
        compute=ray.data.ActorPoolStrategy(size=actors),
        runtime_env=MODEL_ENVIRONMENT,
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        batch_size=1,  # of one number: with GPUs Ray Data refuses None
    )


class _Scorer:
    """The actor: loads the bundle once, then reads and scores span after span."""

    def __init__(
        self,
        dataset: Dataset,
        spans: list[Span],
        bundle: str,
        score: Score,
        schema: pa.Schema,
        predict: Any,
        actors: int,
    ) -> None:
        torch.set_num_threads(max(1, count_cores() // actors))
        self._dataset, self._spans, self._schema = dataset, spans, schema
        self._bundle = load_bundle(
            bundle, device=torch.device("cuda" if torch.cuda.is_available() else "cpu")
        )
        self._score, self._predict = score, predict

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        images = list(read_images(self._dataset, [self._spans[number] for number in batch["id"]]))
        probabilities = self._predict(self._bundle, images)
        rows = [
            self._score(self._bundle, image, probability)
            for image, probability in zip(images, probabilities, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=self._schema)
