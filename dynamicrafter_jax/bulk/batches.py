"""Which requests go through the networks together."""

from collections.abc import Hashable, Iterable

from dynamicrafter_jax.bulk.table import Request


def bucket(request: Request) -> tuple[int, bool, int, int, int]:
    """Returns what decides the compiled program: guided passes, whether the end is given, size."""
    return request.settings.num_passes, request.has_end, *request.settings.size


def plan_batches(requests: Iterable[Request], batch_size: int) -> list[tuple[Request, ...]]:
    """Groups requests into batches of `batch_size`, the last of each kind perhaps smaller.

    Requests of a batch share a program and the solver's tables (steps, eta, spacing); scales,
    `fps`, seeds and texts are their own. Which requests meet in a batch, and where, does not
    depend on the order of the rows nor on what is finished already: a clip's bytes can't either.
    Those of one image, then of one prompt, are neighbours, so that what was encoded is found again.

    Args:
        requests: In any order.
        batch_size: Clips a batch.
    """
    groups: dict[tuple, list[Request]] = {}
    for request in sorted(requests, key=_neighbours):
        groups.setdefault((*bucket(request), *_tables(request)), []).append(request)
    return [
        tuple(group[start : start + batch_size])
        for _, group in sorted(groups.items())
        for start in range(0, len(group), batch_size)
    ]


def _neighbours(request: Request) -> tuple[str, ...]:
    return request.image, request.end_image or "", request.prompt, request.name


def _tables(request: Request) -> tuple[Hashable, ...]:
    return request.settings.steps, request.settings.eta, request.settings.spacing
