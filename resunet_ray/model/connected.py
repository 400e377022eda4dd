"""Connected components of equal values, and what is counted over them."""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, Shaped

from resunet_ray.compiled import compiled


@compiled
def label_components(values: Shaped[np.ndarray, "h w"]) -> tuple[Int32[np.ndarray, "h w"], int]:
    """Label pixels that are connected by their edges and have equal values.

    Args:
        values: 0 is background.

    Returns:
        The labels, numbered from 1 by their first pixels, and how many there are.
    """
    labels = np.zeros(values.shape, np.int32)
    parent = np.empty(values.size + 1, np.int32)
    parent[0] = 0
    last = _connect(values, labels, parent)
    count = 0
    for number in range(1, last + 1):
        if parent[number] == number:
            count += 1
            parent[number] = count
        else:
            parent[number] = parent[parent[number]]  # the parent's is less, so it is final
    renumber(labels, parent)
    return labels, count


@compiled
def _connect(
    values: Shaped[np.ndarray, "h w"],
    labels: Int32[np.ndarray, "h w"],
    parent: Int32[np.ndarray, " n"],
) -> int:
    """Label pixels in place, with several labels for one component, each with a lower as parent."""
    last = 0
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            value = values[y, x]
            if value == 0:
                continue
            above = labels[y - 1, x] if y > 0 and values[y - 1, x] == value else 0
            before = labels[y, x - 1] if x > 0 and values[y, x - 1] == value else 0
            own = max(above, before)
            if own == 0:
                last += 1
                own = parent[last] = last
            elif 0 < above != before > 0:
                one, other = _find_root(parent, above), _find_root(parent, before)
                own = min(one, other)
                parent[max(one, other)] = own
            labels[y, x] = own
    return last


@compiled
def _find_root(parent: Int32[np.ndarray, " n"], number: int) -> int:
    while parent[number] != number:
        number = parent[number]
    return number


@compiled
def renumber(labels: Int32[np.ndarray, "h w"], numbers: Int32[np.ndarray, " n"]) -> None:
    """Give each label another number, in place; 0 stays background."""
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] > 0:
                labels[y, x] = numbers[labels[y, x]]


@compiled
def sum_inside(
    labels: Int32[np.ndarray, "h w"], values: Float32[np.ndarray, "h w"], count: int
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return the area of each instance, pixels, and the sum of some values over it.

    Both by number up to `count`; those of 0 mean nothing.
    """
    areas = np.zeros(count + 1, np.int64)
    sums = np.zeros(count + 1, np.float64)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] > 0:
                areas[labels[y, x]] += 1
                sums[labels[y, x]] += values[y, x]
    return areas, sums


@compiled
def survey(
    labels: Int32[np.ndarray, "h w"], count: int
) -> tuple[Int32[np.ndarray, "n 4"], Int32[np.ndarray, " n"]]:
    """Return the bounding box of each component, and its number of holes.

    Args:
        labels: of components: equal numbers are connected.
        count: the largest number.

    Returns:
        By number, the first row and column and those after the last, and the holes.
    """
    height, width = labels.shape
    boxes = np.zeros((count + 1, 4), np.int32)
    holes = np.zeros(count + 1, np.int32)
    for number in range(count + 1):
        boxes[number, 0], boxes[number, 1], holes[number] = height, width, 1
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            number = labels[y, x]
            if number == 0:
                continue
            boxes[number, 0] = min(boxes[number, 0], y)
            boxes[number, 1] = min(boxes[number, 1], x)
            boxes[number, 2] = y + 1
            boxes[number, 3] = max(boxes[number, 3], x + 1)
            # Euler's formula: pixels, less edges that two share, plus corners that four share, are
            # one less the holes.
            left = x > 0 and labels[y, x - 1] > 0
            above = y > 0 and labels[y - 1, x] > 0
            holes[number] += left + above - 1
            if left and above and labels[y - 1, x - 1] > 0:
                holes[number] -= 1
    return boxes, holes


@compiled
def list_marked(
    labels: Int32[np.ndarray, "h w"],
    components: Int32[np.ndarray, "h w"],
    marked: Bool[np.ndarray, " m"],
    count: int,
) -> Bool[np.ndarray, " n"]:
    """Return, by number, which labels have a pixel in a marked component; 0 has none.

    Args:
        labels: label image.
        components: those of the same pixels.
        marked: which components, by number.
        count: the largest label.
    """
    found = np.zeros(count + 1, np.bool_)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] > 0 and marked[components[y, x]]:
                found[labels[y, x]] = True
    return found


@compiled
def sum_places(
    labels: Int32[np.ndarray, "h w"], count: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return, by number, the area of each label and the sums of its rows and of its columns."""
    areas = np.zeros(count + 1, np.int64)
    rows = np.zeros(count + 1, np.int64)
    columns = np.zeros(count + 1, np.int64)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            areas[labels[y, x]] += 1
            rows[labels[y, x]] += y
            columns[labels[y, x]] += x
    return areas, rows, columns
