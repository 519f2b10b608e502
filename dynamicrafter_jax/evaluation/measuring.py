"""Runs clips through all measures, part by part, skipping those that are finished."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.clips import READERS, Problem, stop_for
from dynamicrafter_jax.evaluation.measures import Measure, Seen
from dynamicrafter_jax.evaluation.store import Store, key_of
from dynamicrafter_jax.runtime.map_ahead import map_ahead
from dynamicrafter_jax.sampling.sampler import Progress

Look = Callable[[Seen], Seen]


class Item(NamedTuple):
    """A clip to measure.

    Attributes:
        name: Name of the clip.
        digest: Hash of everything that determines its frames and its image.
        prompt: What should happen; may be empty.
    """

    name: str
    digest: str
    prompt: str

    @property
    def key(self) -> str:
        """Key of the clip in a store."""
        return key_of(self.name, self.digest)


Produce = Callable[[Sequence[Item]], Iterator[tuple[Item, Seen | Problem]]]
"""Yields the image and frames of each item in turn, or why it can't be used."""


def _nothing() -> dict[str, float]:
    return {"clips": 0.0, "seconds": 0.0}


@dataclasses.dataclass(frozen=True)
class Bench:
    """The tools that clips are measured with.

    Attributes:
        measures: The measures to take.
        store: Where rows are kept.
        part_size: Clips in a part; at most these are lost if a run is interrupted.
        skip: Whether to skip clips that can't be read.
        progress: Receives the numbers of finished clips and of all clips, by set.
        spent: Clips measured so far, and the seconds it took, without reading and generating.
    """

    measures: Sequence[Measure]
    store: Store
    part_size: int
    skip: bool
    progress: Progress
    spent: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"clips": 0.0, "seconds": 0.0}
    )

    def measure(
        self, items: Sequence[Item], produce: Produce, sets: Mapping[str, Look]
    ) -> list[Problem]:
        """Measures the clips that are not finished; returns those that could not be read.

        Args:
            items: All clips.
            produce: Makes or reads clips.
            sets: Sets by name, each with a function applied to a clip before it is measured.

        Raises:
            UserError: Clips can't be read, or rows can't be written. Everything that can be
                measured was, and is kept.
        """
        finished = self.finished(sets)
        missing = [item for item in items if item.key not in finished]
        title, done = " and ".join(sets), len(items) - len(missing)
        self.progress(title, done, len(items))
        problems: list[Problem] = []
        for part in _parts(produce(missing), self.part_size):
            good: list[tuple[Item, Seen]] = []
            for item, seen in part:
                if isinstance(seen, Problem):
                    problems.append(seen)
                else:
                    good.append((item, seen))
            for set_name, look in sets.items():
                looked = [(item, look(seen)) for item, seen in good]
                started = time.perf_counter()
                self._measure(set_name, looked)
                self.spent["clips"] += len(looked)
                self.spent["seconds"] += time.perf_counter() - started
            done += len(part)
            self.progress(title, done, len(items))
        stop_for(problems, self.skip, " (features of all others are kept)")
        return problems

    def finished(self, sets: Iterable[str]) -> set[str]:
        """Returns the keys of the clips that all measures have finished in all of these sets."""
        each = [self.store.finished(name, measure) for name in sets for measure in self.measures]
        return set.intersection(*each)

    def _measure(self, set_name: str, part: Sequence[tuple[Item, Seen]]) -> None:
        for measure in self.measures:
            finished = self.store.finished(set_name, measure)
            wanted = [(item.key, seen) for item, seen in part if item.key not in finished]
            keys: list[str] = []
            rows = []
            for found, values in measure.run(wanted):
                keys += found
                rows += list(values)
            if keys:
                self.store.add(set_name, measure, keys, np.stack(rows))


def reading(read: Callable[[Item], Seen]) -> Produce:
    """Returns a `Produce` that reads items ahead, in threads."""

    def attempt(item: Item) -> tuple[Item, Seen | Problem]:
        try:
            return item, read(item)
        except UserError as error:
            return item, Problem(item.name, str(error))

    def produce(items: Sequence[Item]) -> Iterator[tuple[Item, Seen | Problem]]:
        with ThreadPoolExecutor(READERS) as pool:
            yield from map_ahead(pool, attempt, items, 2 * READERS)

    return produce


def _parts(
    found: Iterator[tuple[Item, Seen | Problem]], size: int
) -> Iterator[list[tuple[Item, Seen | Problem]]]:
    while part := list(islice(found, size)):
        yield part
