"""Work done ahead of its reader by threads, in order and within bounds."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def map_ahead(
    pool: Executor, function: Callable[[Item], Done], items: Iterable[Item], *, depth: int
) -> Iterator[Done]:
    """`function` of each item, in the order of the items, at most `depth` of them begun and not yet taken.

    `Executor.map` would begin all of them at once, and keep every result.
    """
    begun: deque[Future[Done]] = deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) >= depth:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
