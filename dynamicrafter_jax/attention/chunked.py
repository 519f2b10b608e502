"""Portable attention in plain XLA operations, for CPUs too, that never holds all logits."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Limits(NamedTuple):
    """How many float32 logits there may be at a time.

    Attributes:
        in_all: Up to this many in total are computed in one product, without loops.
        a_step: A step of a loop computes at most this many, but at least those of one query.
    """

    in_all: int
    a_step: int


# 16 MB, which XLA transposes and multiplies fastest in one piece; and 4 MB, most of which stays in
# the caches of two cores.
CPU_LIMITS = Limits(2**22, 2**20)

# 256 MB and 64 MB: small compared to an accelerator's memory, but large enough to keep it busy.
ACCELERATOR_LIMITS = Limits(2**26, 2**24)


def chunked_attention(
    query: Float[Array, "n l heads d"],
    key: Float[Array, "n m heads d"],
    value: Float[Array, "n m heads d"],
    mask: Bool[Array, "l m"] | None = None,
    limits: Limits = CPU_LIMITS,
) -> Float[Array, "n l heads d"]:
    """Softmax attention in loops over entries, heads and rows of queries (arXiv 2112.05682).

    The softmax is in float32. The backward pass recomputes the logits of each step, so memory is
    linear in `l` and `m` in both directions.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        mask: Which keys each query sees; None for all.
        limits: When to use loops, and the size of their steps.
    """
    n, tokens, heads, _ = query.shape
    m = key.shape[1]
    if n * heads * tokens * m <= limits.in_all:
        return _heads_at_once(query, key, value, mask)
    if heads * tokens * m <= limits.a_step:
        step = jax.checkpoint(_heads_at_once, prevent_cse=False)
    else:
        step = functools.partial(_heads_in_turn, a_step=limits.a_step)
    return _each(lambda q, k, v: step(q[None], k[None], v[None], mask)[0], query, key, value)


def _heads_at_once(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Computes all logits in one product, with heads in front: `n heads l m`."""
    rows = _rows(
        query.transpose(0, 2, 1, 3),
        key.transpose(0, 2, 3, 1),
        value.transpose(0, 2, 1, 3),
        None if mask is None else mask[None, None],
    )
    return rows.transpose(0, 2, 1, 3)


def _heads_in_turn(
    query: Array, key: Array, value: Array, mask: Array | None, a_step: int
) -> Array:
    """Attends with one head and some of its queries at a time, for one entry."""
    _, tokens, _, d = query.shape
    m = key.shape[1]
    num_chunks = math.ceil(tokens / max(1, a_step // m))
    size = math.ceil(tokens / num_chunks)
    padding = num_chunks * size - tokens
    rows = jnp.pad(query[0], ((0, padding), (0, 0), (0, 0))).transpose(1, 0, 2)
    masks = None if mask is None else jnp.pad(mask, ((0, padding), (0, 0)), constant_values=True)
    chunk = jax.checkpoint(_rows, prevent_cse=False)

    def head(query: Array, key: Array, value: Array) -> Array:
        chunks = query.reshape(num_chunks, size, d)
        if masks is None:
            return _each(lambda query: chunk(query, key, value, None), chunks)
        seen = masks.reshape(num_chunks, size, m)
        return _each(lambda query, mask: chunk(query, key, value, mask), chunks, seen)

    y = _each(head, rows, key[0].transpose(1, 2, 0), value[0].transpose(1, 0, 2))
    return y.reshape(-1, num_chunks * size, d)[:, :tokens].transpose(1, 0, 2)[None]


def _rows(
    query: Float[Array, "*n l d"],
    key: Float[Array, "*n d m"],
    value: Float[Array, "*n m d"],
    mask: Bool[Array, "*#n l m"] | None,
) -> Float[Array, "*n l d"]:
    """Attends with some rows of queries; keys are transposed, which XLA multiplies fastest."""
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    logits = product(query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    highest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    # Dividing the few results instead of the many weights saves a pass over the logits.
    y = product(weights.astype(value.dtype), value) / weights.sum(-1, keepdims=True)
    return y.astype(query.dtype)


def _each(function: Callable[..., Array], *arrays: Array) -> Array:
    """Maps over the leading axis, without a loop if there is only one entry."""
    if len(arrays[0]) == 1:
        return function(*(x[0] for x in arrays))[None]
    return jax.lax.map(lambda entries: function(*entries), arrays)
