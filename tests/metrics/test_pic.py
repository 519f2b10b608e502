"""PIC of videos that keep their image more and less.

The networks are small and their weights random. So this shows that pictures, vectors and
distances are put together rightly, and nothing of how well they agree with people.
"""

import functools

import dreamsim_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax import sharding
from dynamicrafter_jax.metrics.dreamsim import IMAGE_SIZE, DreamSim
from dynamicrafter_jax.metrics.features import Extractor
from dynamicrafter_jax.metrics.pic import conformity, pic
from dynamicrafter_jax.models.layers import abstract_params, init_params

MODEL = DreamSim(width=32, layers=2, heads=2, embedding=16)
FRAMES = 3
VIDEOS = 4


def random_params(model):
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8)
    return init_params(abstract_params(model, images), jax.random.key(0))


@pytest.fixture(scope="module")
def run():
    """What the frames keep of the images of four videos."""
    compiled = jax.jit(functools.partial(conformity, model=MODEL))
    params = random_params(MODEL)

    def kept(videos):
        assert len(videos) == VIDEOS
        return np.asarray(compiled(params, np.stack(videos)))

    return kept


def moving(seed):
    """An image, and frames that move on from it a little; the first is the image itself."""
    wide = dreamsim_files.picture(seed, IMAGE_SIZE, IMAGE_SIZE + FRAMES)
    return np.stack([wide[:, i : i + IMAGE_SIZE] for i in (0, *range(FRAMES))])


def noisy(seed, amount):
    image, *frames = moving(seed)
    return np.stack([image, *(dreamsim_files.noisy(x, i, amount) for i, x in enumerate(frames))])


def test_a_still_keeps_all(run):
    kept = run([np.repeat(moving(seed)[:1], FRAMES + 1, axis=0) for seed in range(VIDEOS)])
    assert kept.shape == (VIDEOS, FRAMES)
    assert np.abs(kept - 1).max() < 1e-6 and np.abs(pic(kept) - 1).max() < 1e-6


def test_noise_keeps_less(run):
    clean, light, heavy = (
        pic(run([noisy(seed, amount) for seed in range(VIDEOS)])) for amount in (0, 20, 80)
    )
    assert 1 > clean.mean() > light.mean() > heavy.mean()


def test_frames_are_judged_by_their_own_image(run):
    videos = [moving(seed) for seed in range(VIDEOS)]
    kept = run(videos)
    # The further a frame has moved on, the less it keeps.
    assert np.abs(kept[:, 0] - 1).max() < 1e-6 and (np.diff(kept) < 0).all()
    assert np.array_equal(pic(kept), kept.astype(np.float64).sum(1) / FRAMES)
    last = run([np.stack([video[0], *[video[-1]] * FRAMES]) for video in videos])
    assert np.abs(last - kept[:, -1:]).max() < 1e-6


def test_devices_share_videos():
    model = DreamSim(("dino",), width=32, layers=1, heads=2)
    network, params = functools.partial(conformity, model=model), random_params(model)
    videos = [(str(seed), moving(seed)) for seed in range(5)]
    kept = {}
    for devices in (1, 4):
        extractor = Extractor(network, params, sharding.make_mesh(data=devices))
        batches = list(extractor(videos))
        assert [name for names, _ in batches for name in names] == list("01234")
        kept[devices] = np.concatenate([rows for _, rows in batches])
    assert np.abs(kept[1] - kept[4]).max() < 1e-6
