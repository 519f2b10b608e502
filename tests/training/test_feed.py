"""What of the loader's rows goes to the devices, and what is said of the rest."""

import numpy as np

from dynamicrafter_jax import sharding
from dynamicrafter_jax.training.feed import Feed, padded, to_batch
from dynamicrafter_jax.training.inputs import Batch

COUNT = 4


def rows(first=2**32 - 2):
    """Rows of which no two arrays are alike."""
    return {
        "index": np.arange(first, first + COUNT),
        "item": np.asarray([7, 5, 7, 5]),
        "problem": np.asarray([b"", b"b.mp4 is short", b"", b"b.mp4 is short"], "S200"),
        "weight": np.asarray([1, 0, 1, 0], np.float32),
        "fs": np.asarray([3, 0, 4, 0], np.float32),
        "frame": np.asarray([2, 0, 1, 0], np.int32),
        "keep_image": np.asarray([0, 0, 1, 0], np.float32),
        "ids": np.arange(COUNT * 2, dtype=np.int32).reshape(COUNT, 2),
        "video": np.arange(COUNT * 12, dtype=np.uint8).reshape(COUNT, 1, 2, 2, 3),
    }


def test_every_array_goes_where_its_name_says():
    batch = to_batch(rows(), sharding.make_mesh(2))
    assert batch.sample_index.tolist() == [2**32 - 2, 2**32 - 1, 0, 1]
    for name in set(Batch._fields) - {"sample_index"}:
        found, wanted = getattr(batch, name), rows().get(name)
        if wanted is None:
            assert found is None, name
        else:
            assert found.dtype == wanted.dtype and np.array_equal(found, wanted), name


def test_only_the_first_samples_count_where_their_number_is_limited():
    counted = padded(rows(first=10), 12)
    assert counted["weight"].tolist() == [1, 0, 0, 0]
    assert padded(rows(first=10), 13)["weight"].tolist() == [1, 0, 1, 0]
    assert set(counted) == set(rows())


def test_a_broken_video_is_named_once_and_peeking_takes_nothing(capsys):
    feed = Feed(iter([rows(0), rows(COUNT), rows(2 * COUNT)]), sharding.make_mesh(1))
    assert feed.peek().sample_index[0] == 0
    assert [batch.sample_index[0] for batch in feed] == [0, COUNT, 2 * COUNT]
    assert feed.rows["index"][0] == 2 * COUNT
    assert capsys.readouterr().err == "warning: skipped b.mp4 is short\n"
