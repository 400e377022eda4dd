"""Work that threads do ahead of its consumer, in order and within bounds."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def map_ahead(
    pool: Executor, function: Callable[[Item], Done], items: Iterable[Item], *, depth: int
) -> Iterator[Done]:
    """Yield `function(item)` for each item, in order.

    At most `depth` results are in progress or waiting to be taken; `Executor.map` would start all
    of them at once and hold every result.
    """
    begun: deque[Future[Done]] = deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) >= depth:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
