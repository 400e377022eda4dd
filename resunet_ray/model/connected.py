"""Connected components of equal values, and what is counted over them.

What counts over labels goes from run to run, pixels of one label that follow each other in a row: a
sum that each pixel reads and writes takes several times as long.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, Shaped, UInt8

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
        x = 0
        while x < labels.shape[1]:
            label, start = labels[y, x], x
            if label == 0:
                x += 1
                continue
            total = sums[label]
            while x < labels.shape[1] and labels[y, x] == label:
                total += values[y, x]
                x += 1
            areas[label] += x - start
            sums[label] = total
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
def mark_labels(
    labels: Int32[np.ndarray, "h w"],
    components: Int32[np.ndarray, "h w"],
    marks: UInt8[np.ndarray, " m"],
    count: int,
) -> UInt8[np.ndarray, " n"]:
    """Return, by number, the marks of all components that each label has pixels in; 0 has none.

    Args:
        labels: label image.
        components: those of the same pixels.
        marks: of the components, by number; each bit is a mark.
        count: the largest label.
    """
    found = np.zeros(count + 1, np.uint8)
    for y in range(labels.shape[0]):
        x = 0
        while x < labels.shape[1]:
            label, seen = labels[y, x], np.uint8(0)
            if label == 0:
                x += 1
                continue
            while x < labels.shape[1] and labels[y, x] == label:
                seen |= marks[components[y, x]]
                x += 1
            found[label] |= seen
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
        x = 0
        while x < labels.shape[1]:
            label, start = labels[y, x], x
            while x < labels.shape[1] and labels[y, x] == label:
                x += 1
            length = x - start
            areas[label] += length
            rows[label] += y * length
            columns[label] += (start + x - 1) * length // 2
    return areas, rows, columns
