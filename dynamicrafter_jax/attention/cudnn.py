"""cuDNN's fused attention for NVIDIA GPUs, through JAX."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The widest head that cuDNN supports on every GPU with fused attention.
_WIDEST_HEAD = 128


def cudnn_takes(query: Array, mask: Array | None) -> bool:
    """Returns whether cuDNN has a kernel for arrays `(n, l, heads, d)`."""
    d = query.shape[-1]
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return mask is None and half and d % 8 == 0 and d <= _WIDEST_HEAD


def cudnn_attention(
    query: Float[Array, "n l heads d"],
    key: Float[Array, "n m heads d"],
    value: Float[Array, "n m heads d"],
) -> Float[Array, "n l heads d"]:
    """Computes softmax attention without writing logits to memory, in bfloat16 or float16."""
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
