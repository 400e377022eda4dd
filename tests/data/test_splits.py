"""Splits depend on names and a seed alone."""

import pytest
from sklearn.model_selection import train_test_split

from resunet_ray.data.splits import (
    TEST,
    TRAIN,
    VAL,
    split_as_baseline,
    split_by_fraction,
    split_from_lists,
)
from resunet_ray.errors import InputError


@pytest.mark.parametrize("count", [5, 26, 101, 664])
def test_the_baseline_s_split_is_exactly_scikit_learn_s(count: int) -> None:
    names = [f"{number * 7919 % 1009:04d}" for number in range(count)]
    rest, test = train_test_split(sorted(names), test_size=0.2, random_state=42)
    train, val = train_test_split(rest, test_size=0.2, random_state=42)
    expected = dict.fromkeys(train, TRAIN) | dict.fromkeys(val, VAL) | dict.fromkeys(test, TEST)
    assert split_as_baseline(names[::-1]) == expected


def test_fractions_hold_and_the_order_of_names_does_not_matter() -> None:
    names = [f"image-{number}" for number in range(200)]
    split = split_by_fraction(names, val_fraction=0.2, test_fraction=0.1, seed=5)
    assert [list(split.values()).count(name) for name in (TRAIN, VAL, TEST)] == [140, 40, 20]
    assert split == split_by_fraction(names[::-1], val_fraction=0.2, test_fraction=0.1, seed=5)
    assert split != split_by_fraction(names, val_fraction=0.2, test_fraction=0.1, seed=6)


def test_a_group_is_never_in_two_splits() -> None:
    groups = {f"image-{number}": f"patient-{number % 11}" for number in range(100)}
    split = split_by_fraction(
        list(groups), val_fraction=0.3, test_fraction=0.3, seed=0, groups=groups
    )
    for patient in set(groups.values()):
        assert len({split[name] for name, group in groups.items() if group == patient}) == 1
    assert set(split.values()) == {TRAIN, VAL, TEST}


def test_a_split_from_a_file_is_used_unchanged_or_refused() -> None:
    assert split_from_lists(["a", "b", "c"], lists={TRAIN: ["b"], VAL: ["a"]}, source="f") == {
        "b": TRAIN,
        "a": VAL,
    }
    with pytest.raises(InputError, match="f lists a in both train and val"):
        split_from_lists(["a"], lists={TRAIN: ["a"], VAL: ["a"]}, source="f")
    with pytest.raises(
        InputError, match="f lists 1 images that the input does not have, z being the first"
    ):
        split_from_lists(["a"], lists={TRAIN: ["a", "z"]}, source="f")
