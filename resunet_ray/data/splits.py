"""Which image is for training, validation or test: decided by names and a seed alone, the same everywhere."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from resunet_ray.errors import InputError

TRAIN, VAL, TEST = "train", "val", "test"

_BASELINE_SEED = 42
_BASELINE_FRACTION = 0.2


def split_as_baseline(image_ids: Sequence[str]) -> dict[str, str]:
    """The baseline's split: sorted names, 20% for the test, then 20% of the rest for validation.

    Equals scikit-learn's `train_test_split(..., test_size=0.2, random_state=42)`, applied twice.
    """
    rest, test = _hold_out(sorted(image_ids), fraction=_BASELINE_FRACTION, seed=_BASELINE_SEED)
    train, val = _hold_out(rest, fraction=_BASELINE_FRACTION, seed=_BASELINE_SEED)
    return _by_id({TRAIN: train, VAL: val, TEST: test})


def split_by_fraction(
    image_ids: Sequence[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """A random split; images of one group (a patient, a slide) stay together.

    Args:
        image_ids: the images; their order does not matter.
        val_fraction: share of the groups for validation.
        test_fraction: share of the groups for the test.
        seed: the same seed gives the same split.
        groups: group of each image; by default each is its own.
    """
    group_of = {image_id: groups[image_id] if groups else image_id for image_id in image_ids}
    names = sorted(set(group_of.values()))
    rng = np.random.default_rng(seed)
    order = [names[i] for i in rng.permutation(len(names))]
    num_test = math.ceil(test_fraction * len(names)) if test_fraction else 0
    num_val = math.ceil(val_fraction * len(names))
    split_of = dict.fromkeys(order[:num_test], TEST) | dict.fromkeys(
        order[num_test : num_test + num_val], VAL
    )
    return {image_id: split_of.get(group, TRAIN) for image_id, group in group_of.items()}


def split_from_lists(
    image_ids: Sequence[str], *, lists: Mapping[str, Sequence[str]], source: str
) -> dict[str, str]:
    """The split that a file states. Images that it does not list are absent from the result.

    Raises:
        InputError: an image stands in two splits, or is not there.
    """
    split_of: dict[str, str] = {}
    for split, members in lists.items():
        for image_id in members:
            if split_of.setdefault(image_id, split) != split:
                raise InputError(
                    f"{source} lists {image_id} in both {split_of[image_id]} and {split}: expected one split an image"
                )
    missing = sorted(split_of.keys() - set(image_ids))
    if missing:
        raise InputError(
            f"{source} lists {len(missing)} images that the input does not hold, {missing[0]} the first"
        )
    return split_of


def _hold_out(names: list[str], *, fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """What is kept and what is held out, in scikit-learn's ShuffleSplit order."""
    num_held = math.ceil(fraction * len(names))
    order = np.random.RandomState(seed).permutation(len(names))
    return [names[i] for i in order[num_held:]], [names[i] for i in order[:num_held]]


def _by_id(splits: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {image_id: split for split, members in splits.items() for image_id in members}
