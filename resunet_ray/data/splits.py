"""Which image is for training, validation or test: decided by names and a seed alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from resunet_ray.data.names import plain
from resunet_ray.data.texts import read_text
from resunet_ray.errors import InputError

TRAIN, VAL, TEST = "train", "val", "test"

_BASELINE_SEED = 42
_BASELINE_FRACTION = 0.2


def split_as_baseline(image_ids: Sequence[str]) -> dict[str, str]:
    """Return the baseline's split: 20% for the test, then 20% of the rest for validation.

    Equals scikit-learn's `train_test_split(..., test_size=0.2, random_state=42)`, applied twice to
    the sorted names.
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
    """Draw a random split that keeps images of one group (a patient, a slide) together.

    Args:
        image_ids: the images; their order does not matter.
        val_fraction: share of the groups for validation.
        test_fraction: share of the groups for the test.
        seed: the same seed gives the same split.
        groups: group of each image; None: each image is a group.
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
    """Return the split that a file defines, without the images that it does not list.

    Raises:
        InputError: an image is listed in two splits, or does not exist.
    """
    split_of: dict[str, str] = {}
    for split, members in lists.items():
        for image_id in members:
            if split_of.setdefault(image_id, split) != split:
                raise InputError(
                    f"{source} lists {image_id} in both {split_of[image_id]} and {split}: "
                    "expected each image in one split"
                )
    missing = sorted(split_of.keys() - set(image_ids))
    if missing:
        raise InputError(
            f"{source} lists {len(missing)} images that the input does not have, "
            f"{missing[0]} being the first"
        )
    return split_of


def _hold_out(names: list[str], *, fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Return the names kept and the names held out, in the order of scikit-learn's ShuffleSplit."""
    num_held = math.ceil(fraction * len(names))
    order = np.random.RandomState(seed).permutation(len(names))
    return [names[i] for i in order[num_held:]], [names[i] for i in order[:num_held]]


def _by_id(splits: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {image_id: split for split, members in splits.items() for image_id in members}


def read_lists(uri: str) -> dict[str, list[str]]:
    """Read the image ids of each split from a JSON file.

    Raises:
        InputError: it is not a JSON object of lists, or has no list for training or validation.
    """
    try:
        content = TypeAdapter(dict[str, Any]).validate_json(read_text(uri))
        named = {name: content[name] for name in (TRAIN, VAL, TEST) if name in content}
        lists = TypeAdapter(dict[str, list[str]]).validate_python(named)
    except ValidationError as error:
        raise InputError(
            f"{uri} is not a JSON object of lists of image ids: {error.errors()[0]['msg']}"
        ) from None
    if TRAIN not in lists or VAL not in lists:
        raise InputError(
            f"{uri} has the keys {', '.join(content) or '(none)'}: "
            "expected `train` and `val` (and optionally `test`), each a list of image ids"
        )
    return {split: [plain(name) for name in names] for split, names in lists.items()}
