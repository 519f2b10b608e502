"""Maps a function over items in threads, a little ahead of the consumer."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def map_ahead(
    pool: Executor, function: Callable[[T], U], items: Iterable[T], ahead: int
) -> Iterator[U]:
    """Yields `function(item)` for each item in order, while the pool works on `ahead` more."""
    pending: deque[Future[U]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
