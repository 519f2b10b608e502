"""JAX's own Pallas kernel for TPUs, which keeps logits on the chip, forward and backward."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jaxtyping import Array, Float

# The kernel's blocks are multiples of a TPU's lanes.
_LANES = 128

# Rows in a block, by the widest head they can serve: a block's float32 logits and its operands
# must fit into the 16 MB that a v5e gives a kernel.
_LARGEST_BLOCK = {128: 1024, 512: 512}

# With fewer keys, padding to blocks and starting kernels cost more than logits do.
_FEWEST_KEYS = 512


def splash_takes(query: Array, key: Array, mask: Array | None) -> bool:
    """Returns whether the kernel is accurate and pays off, for arrays `(n, l, heads, d)`.

    It is not used for float32, since it multiplies in a single pass of bfloat16.
    """
    return (
        mask is None
        and query.dtype == jnp.bfloat16
        and query.shape[-1] <= max(_LARGEST_BLOCK)
        and min(query.shape[1], key.shape[1]) >= _FEWEST_KEYS
    )


def splash_attention(
    query: Float[Array, "n l heads d"],
    key: Float[Array, "n m heads d"],
    value: Float[Array, "n m heads d"],
    *,
    interpret: bool = False,
) -> Float[Array, "n l heads d"]:
    """Computes softmax attention with `jax.experimental.pallas.ops.tpu.splash_attention`.

    Lengths are padded to multiples of 128; padded keys are in a separate segment, which no query
    sees.

    Args:
        query: Queries, bfloat16.
        key: Keys.
        value: Values.
        interpret: Whether to run the kernel's steps as XLA operations, on any platform.
    """
    _, tokens, heads, d = query.shape
    m = key.shape[1]
    scaled = (query.astype(jnp.float32) * d**-0.5).astype(query.dtype)
    q, k, v = (_blocks_of_heads(x) for x in (scaled, key, value))
    rows, columns = q.shape[2], k.shape[2]
    kernel = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([pallas.FullMask((rows, columns))] * heads),
        block_sizes=_block_sizes(rows, columns, d),
        interpret=interpret,
    )
    segments = None
    if columns != m:
        padded = (jnp.arange(columns) >= m).astype(jnp.int32)
        segments = pallas.SegmentIds(jnp.zeros(rows, jnp.int32), padded)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        y = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(q, k, v)
    assert isinstance(y, Array)  # no residuals, which were not requested
    return y.transpose(0, 2, 1, 3)[:, :tokens]


def _blocks_of_heads(x: Array) -> Array:
    """Transposes `n l heads d` to `n heads l d`, with tokens padded to whole lanes."""
    padding = -x.shape[1] % _LANES
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def _block_sizes(rows: int, columns: int, d: int) -> pallas.BlockSizes:
    limit = next(block for width, block in _LARGEST_BLOCK.items() if d <= width)
    q, kv = _largest_divisor(rows, limit), _largest_divisor(columns, limit)
    # Tokens are the minor axis in memory, since heads of 64 would fill only half of each row.
    layout = pallas.QKVLayout.SEQ_MINOR
    return pallas.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_q_dq=q,
        block_kv_dq=kv,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )


def _largest_divisor(length: int, limit: int) -> int:
    """Returns the largest multiple of 128 up to `limit` that divides `length`."""
    sizes = range(_LANES, min(length, limit) + 1, _LANES)
    return max(size for size in sizes if length % size == 0)
