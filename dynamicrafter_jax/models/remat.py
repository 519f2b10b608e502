"""What the forward pass of a block keeps for its backward pass, which recomputes the rest."""

from typing import Any

import flax.linen as nn
import jax


def products_saveable(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A `jax.checkpoint` policy that keeps only the results of linear maps and convolutions.

    Norms, activations and attention are recomputed.
    """
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    if primitive is not jax.lax.dot_general_p:
        return False
    _, batch_axes = parameters["dimension_numbers"]
    return not any(batch_axes)  # attention's products have batch axes


# What the forward pass of a U-Net block keeps for the backward pass, by name: everything; the
# results of linear maps and convolutions; only the block's input.
REMAT_POLICIES = {
    "none": None,
    "products": products_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


def rematerialize(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """Returns a `block` whose backward pass recomputes what the policy does not keep.

    Raises:
        ValueError: There is no such policy.
    """
    if policy not in REMAT_POLICIES:
        raise ValueError(
            f"there is no remat policy {policy!r}: choose from {', '.join(REMAT_POLICIES)}"
        )
    chosen = REMAT_POLICIES[policy]
    return block if chosen is None else nn.remat(block, policy=chosen)
