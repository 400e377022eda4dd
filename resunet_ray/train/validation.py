"""Validation: each image once over all workers, at full resolution, for all thresholds at once."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed
from jaxtyping import Float32, Float64
from torch import nn

from resunet_ray.config import TrainConfig
from resunet_ray.data.dataset import Dataset, plan_once
from resunet_ray.data.labelled import LabelledImage, read_images
from resunet_ray.data.splits import VAL
from resunet_ray.model import metrics
from resunet_ray.model.diameter import Images, Ranges, predict_scaled
from resunet_ray.model.inference import default_batch_size, predict
from resunet_ray.model.instances import choose_method, find_instances
from resunet_ray.model.losses import Loss
from resunet_ray.model.matching import count_overlaps, score_instances
from resunet_ray.model.prediction import Prediction

INSTANCE_SCORES = ("pq", "ap50")
"""Scores of instances: panoptic quality, and average precision at an IoU of 0.5."""


@dataclass
class Tally:
    """Sums over images, which add up to the same result for any number of workers."""

    seen: list[int] = field(default_factory=list)
    """Number of each image within the split."""
    loss: float = 0.0
    scores: Float64[np.ndarray, "5 thresholds"] = field(
        default_factory=lambda: np.zeros((len(metrics.SCORE_NAMES), len(metrics.THRESHOLDS)))
    )
    matched: int = 0
    """Images whose instances were scored."""
    instances: Float64[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2))
    """Sums of `INSTANCE_SCORES` over those images."""

    def add(self, other: "Tally") -> None:
        """Add another worker's sums."""
        self.seen += other.seen
        self.loss += other.loss
        self.scores = self.scores + other.scores
        self.matched += other.matched
        self.instances = self.instances + other.instances

    def result(self) -> dict[str, float]:
        """Return mean loss and scores over images, at the threshold with the highest mean F1.

        Scores of instances are there if any were measured.
        """
        mean = self.scores / len(self.seen)
        best = int(mean[metrics.SCORE_NAMES.index("f1")].argmax())
        found = {name: float(mean[row, best]) for row, name in enumerate(metrics.SCORE_NAMES)}
        means = self.instances / max(1, self.matched)
        return {
            "loss": self.loss / len(self.seen),
            **found,
            "threshold": float(metrics.THRESHOLDS[best]),
            **(dict(zip(INSTANCE_SCORES, means.tolist(), strict=True)) if self.matched else {}),
        }


def validate(
    network: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    loss: Loss,
    rank: int,
    workers: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> dict[str, float]:
    """Return the validation scores, the same in every worker.

    Args:
        network: in evaluation mode, on `device`; identical in every worker.
        dataset: the data set; its validation split is read.
        config: the run's configuration.
        loss: computed on each whole image.
        rank: number of this worker, from 0.
        workers: number of workers; each takes every `workers`-th image.
        device: where the network is.
        dtype: autocast type; None: no autocast.
    """

    def run(images: Images, ranges: Ranges, packed: bool) -> list[Prediction]:
        return predict(
            network,
            images,
            config=config.preprocess,
            channels=config.model.in_channels,
            heads=config.model.heads,
            device=device,
            dtype=dtype,
            batch_size=default_batch_size(device),
            ranges=ranges,
            packed=packed,
        )

    tally = Tally()
    for sample in read_images(dataset, plan_once(dataset, VAL, rank=rank, workers=workers)):
        # As the bundle will be used.
        (found,) = predict_scaled(run, [sample.image], None, scales=[None])
        tally.add(_score_mask(sample, found.probability, loss=loss))
        if config.monitor in INSTANCE_SCORES:
            tally.add(_score_instances(sample, found))
    if workers > 1:
        parts: list[Tally | None] = [None] * workers
        torch.distributed.all_gather_object(parts, tally)
        tally = Tally()
        for part in parts:
            assert part is not None, "all_gather_object fills every place"
            tally.add(part)
    assert sorted(tally.seen) == list(range(dataset.splits[VAL])), (
        "a validation image was lost or counted twice"
    )
    return tally.result()


def _score_mask(
    sample: LabelledImage, probability: Float32[np.ndarray, "h w"], *, loss: Loss
) -> Tally:
    scores = metrics.score_counts(
        metrics.counts_by_threshold(metrics.histogram(probability, sample.mask))
    )
    logits = torch.logit(torch.from_numpy(probability), eps=1e-6)[None, None]
    truth = torch.from_numpy(sample.mask).float()[None, None]
    return Tally([sample.index], float(loss(logits, truth)), np.stack(list(scores.values())))


def _score_instances(sample: LabelledImage, found: Prediction) -> Tally:
    """Score the instances at a threshold of 0.5; empty where none are known."""
    if sample.labels is None:
        return Tally()
    labels = find_instances(found, config=choose_method(found.heads))
    scores = score_instances(count_overlaps(sample.labels, labels))
    return Tally(matched=1, instances=np.array([scores.pq, scores.ap[0]]))
