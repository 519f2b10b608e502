"""Batches of clips of noise, as the loader gives them."""

from typing import Any

import numpy as np

from dynamicrafter_jax.training.inputs import Batch

CLIPS = 8


def clips(count=CLIPS, broken=()) -> Any:
    draw = np.random.default_rng(1)
    weight = np.ones(count, np.float32)
    weight[list(broken)] = 0
    fields: dict[str, Any] = dict(
        sample_index=np.arange(100, 100 + count, dtype=np.uint32),
        weight=weight,
        fs=np.full(count, 8, np.float32),
        frame=draw.integers(0, 3, count).astype(np.int32),
        keep_image=np.asarray([i % 4 != 3 for i in range(count)], np.float32),
        video=draw.integers(0, 256, (count, 3, 16, 24, 3)).astype(np.uint8),
        ids=draw.integers(0, 49407, (count, 77)).astype(np.int32),
        ends=np.arange(count) % 4 == 1,
    )
    return Batch(**fields)
