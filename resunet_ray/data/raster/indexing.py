"""What an index of numbers and ranges, one for each axis, picks of an array."""

import itertools
from collections.abc import Sequence

import numpy as np

Index = Sequence[int | slice]


def to_ranges(index: Index, shape: Sequence[int]) -> list[range]:
    """Return what is picked along each axis; a number is a range of one."""
    return [
        range(place, place + 1) if isinstance(place, int) else range(length)[place]
        for place, length in zip(index, shape, strict=True)
    ]


def number_places(ranges: Sequence[range], shape: Sequence[int]) -> list[int]:
    """Number all places within some ranges, in C order; without axes, there is one place, 0."""
    return [
        int(np.ravel_multi_index(place, tuple(shape))) if place else 0
        for place in itertools.product(*ranges)
    ]


def picked_shape(index: Index, shape: Sequence[int]) -> list[int]:
    """Return the shape of what is picked; an axis with a number is left out."""
    return [
        len(picked)
        for place, picked in zip(index, to_ranges(index, shape), strict=True)
        if isinstance(place, slice)
    ]
