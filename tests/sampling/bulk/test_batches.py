"""Which requests meet in a batch."""

import random
from collections import Counter

import bulk_jobs
import pytest

from dynamicrafter_jax.sampling.bulk import plan_batches
from dynamicrafter_jax.sampling.bulk.batches import bucket
from dynamicrafter_jax.sampling.bulk.encoder import Recent


def rows() -> list[dict]:
    """Rows of three buckets and three kinds of tables, in counts that no batch divides."""
    choices = ({}, {"guidance_scale": 1}, {"steps": 3}, {"loop": True}, {"eta": 0, "loop": True})
    return [
        {"id": f"r{i}", "image": f"{i % 3}.png", "seed": i, "fps": 5 + i} | choices[i % 5]
        for i in range(23)
    ]


def test_rows_of_other_sizes_share_neither_a_program_nor_what_was_encoded(tmp_path):
    bulk_jobs.pictures(tmp_path, 1)
    sizes: list[dict] = [{}, {"height": 24}, {"width": 32}, {"num_frames": 2}, {"video_fps": 4}]
    table = [{"id": f"r{i}", "image": "0.png"} | size for i, size in enumerate(sizes)]
    wanted = bulk_jobs.requests(bulk_jobs.table(tmp_path, table))
    batches = plan_batches(wanted, 5)
    assert sorted(len(batch) for batch in batches) == [1, 1, 1, 2]  # only the rate of the file
    found = bulk_jobs.read(wanted, tmp_path)
    assert [row.first.shape[:2] for row in found[:3]] == [(16, 24), (24, 24), (16, 32)]
    for key in ("image_key", "end_key"):
        first, *others, last = (getattr(row, key) for row in found)
        assert first == last and len({first, *others}) == 4


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_each_request_is_in_one_batch_with_its_like(tmp_path, batch_size):
    wanted = bulk_jobs.requests(bulk_jobs.table(tmp_path, rows()))
    batches = plan_batches(wanted, batch_size)
    assert Counter(one for batch in batches for one in batch) == Counter(wanted)
    kinds = []
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        (kind,) = {(bucket(one), one.settings.steps, one.settings.eta) for one in batch}
        kinds.append((kind, len(batch)))
    smaller = Counter(kind for kind, size in kinds if size < batch_size)
    assert all(count == 1 for count in smaller.values())


def test_the_order_of_rows_changes_no_batch(tmp_path):
    shuffled = rows()
    random.Random(0).shuffle(shuffled)
    there = plan_batches(bulk_jobs.requests(bulk_jobs.table(tmp_path, rows())), 4)
    back = plan_batches(bulk_jobs.requests(bulk_jobs.table(tmp_path, shuffled)), 4)
    assert there == back


def test_rows_of_one_image_are_neighbours(tmp_path):
    table = bulk_jobs.table(tmp_path, [{"id": f"{i}", "image": f"{i % 3}.png"} for i in range(9)])
    batches = plan_batches(bulk_jobs.requests(table), 3)
    assert [len({one.image for one in batch}) for batch in batches] == [1, 1, 1]


def test_what_was_encoded_is_kept_by_its_last_use():
    kept, made = Recent(2), []

    def encode(key: str) -> str:
        made.append(key)
        return key.upper()

    assert [kept.get(key, lambda key=key: encode(key)) for key in "abacab"] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]  # "a" was in use throughout
