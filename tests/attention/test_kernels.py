"""Each form of attention, against float64 on the host and against plain attention's gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax.attention import splash, temporal
from dynamicrafter_jax.attention.chunked import Limits, chunked_attention
from dynamicrafter_jax.attention.cudnn import cudnn_attention, cudnn_takes
from dynamicrafter_jax.attention.splash import splash_attention, splash_takes
from dynamicrafter_jax.models.attention import plain_attention, plain_temporal_attention


def numbers(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def three(n, tokens, m, heads, d, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    shapes = ((n, tokens, heads, d), (n, m, heads, d), (n, m, heads, d))
    return tuple(numbers(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))


def oracle(query, key, value, mask=None):
    """Softmax attention in float64, written out."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("nlhd,nmhd->nhlm", query, key) / np.sqrt(query.shape[-1])
    if mask is not None:
        logits = np.where(np.asarray(mask), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nhlm,nmhd->nlhd", weights, value)


def with_gradients(attend, arrays, *rest):
    """Returns results, and the gradients of a weighted sum of them."""
    weight = numbers(*arrays[0].shape, seed=9)

    @jax.jit
    def run(*arrays):
        y, pull = jax.vjp(lambda *arrays: attend(*arrays, *rest), *arrays)
        return y, pull(weight)

    return run(*arrays)


def check(attend, arrays, expected, plain, *rest):
    """Holds results against the oracle's, and gradients against those of `plain`."""
    y, gradients = with_gradients(attend, arrays, *rest)
    np.testing.assert_allclose(y, expected, atol=3e-6)
    for ours, theirs in zip(gradients, with_gradients(plain, arrays, *rest)[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# Tiny shapes go each of the ways that sizes choose.
WAYS = {
    "at once": Limits(2**22, 0),
    "heads at once": Limits(0, 2**20),
    "in turn": Limits(0, 40),
    "row by row": Limits(0, 1),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_chunked_attention_is_attention(way, masked):
    arrays = three(2, 7, 9, 3, 8)
    mask = jnp.tril(jnp.ones((7, 9), bool)) if masked else None
    attend = functools.partial(chunked_attention, limits=WAYS[way])
    check(attend, arrays, oracle(*arrays, mask=mask), plain_attention, mask)


@pytest.mark.parametrize("way", ["at once", "row by row"])
def test_one_key_is_the_result(way):
    arrays = three(1, 6, 1, 1, 5)
    y = jax.jit(functools.partial(chunked_attention, limits=WAYS[way]))(*arrays)
    np.testing.assert_allclose(y, jnp.broadcast_to(arrays[2], (1, 6, 1, 5)), atol=1e-6)


def test_chunked_attention_never_holds_all_logits():
    """4096 tokens to each other are 67 MB of logits a head, forward; more backward."""
    arrays = jax.eval_shape(lambda: three(1, 4096, 4096, 2, 16))
    logits = 2 * 4096**2 * 4

    def temporary(function):
        memory: Any = jax.jit(function).lower(*arrays).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert temporary(plain_attention) > logits, "the measure sees logits"
    assert temporary(chunked_attention) < logits / 8
    backward = jax.grad(lambda *x: chunked_attention(*x).sum(), (0, 1, 2))
    assert temporary(backward) < logits / 4


def time_shapes(t=5, dtype=jnp.float32):
    return tuple(numbers(2, t, 3, 2, 8, seed=i, dtype=dtype) for i in range(3))


TEMPORAL = [temporal.elementwise_temporal_attention, temporal.batched_temporal_attention]


@pytest.mark.parametrize("attend", TEMPORAL)
@pytest.mark.parametrize("frames", [1, 5])
def test_temporal_attention_is_attention_at_each_pixel(attend, frames):
    arrays = time_shapes(frames)
    pixels = [np.asarray(x).transpose(0, 2, 1, 3, 4).reshape(6, frames, 2, 8) for x in arrays]
    expected = oracle(*pixels).reshape(2, 3, frames, 2, 8).transpose(0, 2, 1, 3, 4)
    check(attend, arrays, expected, plain_temporal_attention)


@pytest.mark.parametrize("attend", TEMPORAL)
def test_temporal_attention_in_bfloat16(attend, relative_error):
    ours = attend(*time_shapes(dtype=jnp.bfloat16))
    assert ours.dtype == jnp.bfloat16
    exact = attend(*(x.astype(jnp.float32) for x in time_shapes(dtype=jnp.bfloat16)))
    assert relative_error(ours.astype(jnp.float32), exact) < 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_chunked_attention_in_bfloat16(way, relative_error):
    arrays = three(2, 7, 9, 3, 8, dtype=jnp.bfloat16)
    ours = jax.jit(functools.partial(chunked_attention, limits=WAYS[way]))(*arrays)
    assert ours.dtype == jnp.bfloat16
    assert relative_error(ours.astype(jnp.float32), oracle(*arrays)) < 1e-2


def test_splash_attention_is_attention():
    """In the interpreter, which is exact, with lengths that have to be padded."""
    arrays = three(1, 100, 130, 1, 16)
    attend = jax.checkpoint(functools.partial(splash_attention, interpret=True))
    check(attend, arrays, oracle(*arrays), plain_attention)


@pytest.mark.parametrize("length", [9216, 2304, 2560, 640, 1024])
def test_splash_blocks_divide_the_lengths_of_the_models(length):
    for width, limit in ((64, 1024), (512, 512)):
        sizes = splash._block_sizes(length, length, width)
        assert length % sizes.block_q == 0
        assert 128 <= sizes.block_q <= limit
        assert sizes.has_backward_blocks


def test_splash_takes_long_half_precision():
    def takes(tokens, m, d=64, dtype=jnp.bfloat16, mask=None):
        query, key = (jnp.zeros((1, size, 1, d), dtype) for size in (tokens, m))
        return splash_takes(query, key, mask)

    assert takes(576, 576) and takes(9216, 9216, 512)
    assert not takes(9216, 77) and not takes(144, 144)
    assert not takes(2560, 2560, dtype=jnp.float32)
    assert not takes(2560, 2560, mask=jnp.ones((2560, 2560), bool))
    assert not takes(2560, 2560, d=1024)


def test_cudnn_takes_what_it_documents(monkeypatch):
    def takes(d=64, dtype=jnp.bfloat16, mask=None):
        return cudnn_takes(jnp.zeros((1, 5, 1, d), dtype), mask)

    assert takes() and takes(80) and takes(128, jnp.float16)
    assert not takes(512) and not takes(60) and not takes(dtype=jnp.float32)
    assert not takes(mask=jnp.ones((5, 5), bool))

    calls = []
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda query, key, value, **options: calls.append(options) or query,
    )
    arrays = three(1, 5, 6, 1, 8, dtype=jnp.bfloat16)
    assert cudnn_attention(*arrays) is arrays[0]
    assert calls == [{"implementation": "cudnn"}]
