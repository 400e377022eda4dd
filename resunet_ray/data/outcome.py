"""What preparing a data set comes to: counts, what may be wrong with it, or too many rejects."""

import logging
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from resunet_ray import storage
from resunet_ray.config import PrepareConfig
from resunet_ray.data.check import LEFT_OUT
from resunet_ray.errors import InputError

logger = logging.getLogger(__name__)

_INVERTED = 0.6  # share of nucleus pixels that, as a median, rather comes from swapped masks


@dataclass(frozen=True)
class PreparationResult:
    """Counts of the images that were taken and rejected."""

    images: int
    rejected: int
    splits: dict[str, int]
    reasons: dict[str, int]
    passed_over: dict[str, int]
    """Files of the inputs that are not read, by kind."""
    warnings: list[str]
    """What may be wrong with the data set as a whole."""


def find_swapped(fractions: pd.Series) -> list[str]:
    """Warn if background and nuclei may be swapped, which no single mask tells.

    Args:
        fractions: share of nucleus pixels of each image.
    """
    covered = fractions.median()
    if not covered > _INVERTED:
        return []
    warning = (
        f"in half of the images, nuclei cover more than {covered:.0%}: are 0 and the other value "
        "of the masks swapped? 0 must be background"
    )
    logger.warning("%s", warning)
    return [warning]


def require_few_rejects(rejects: pd.DataFrame, *, total: int, config: PrepareConfig) -> None:
    """Refuse a data set of which too much is rejected.

    Args:
        rejects: rows of rejects.parquet.
        total: how many images were found.
        config: of the job.

    Raises:
        InputError: it is.
    """
    left_out = rejects["reason"].isin(LEFT_OUT)
    if left_out.sum() < total:
        total, rejects = total - int(left_out.sum()), rejects[~left_out]
    fraction = len(rejects) / total
    if len(rejects) and fraction > config.max_reject_fraction:
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in Counter(rejects["reason"]).items()
        )
        raise InputError(
            f"{len(rejects)} of {total} images are rejected ({reasons}), a fraction of "
            f"{fraction:.4f}: --max-reject-fraction is {config.max_reject_fraction}. "
            f"The first: {rejects['message'].iloc[0]}. "
            f"All are listed in {storage.join(config.output, 'rejects.parquet')}: "
            "fix them, or raise the fraction to continue without them"
        )
