"""The U-Net in two parts: the outermost blocks, and the deep feature from all that is within."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax.models.layers import Common, abstract_params, init_params
from dynamicrafter_jax.models.unet import UNet

# Two levels of other widths, two blocks each. At this depth, the feature is of the first level and
# comes from the second.
DEPTH = 2
UNET = UNet(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    num_head_channels=16,
    context_dim=16,
)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def inputs(seed: int) -> tuple[Any, ...]:
    return (
        normal(seed, 2, 3, 2, 4, 8),
        jnp.asarray([500.0, 20.0]) + seed,
        normal(seed + 1, 2, 7, 16),
        normal(seed + 2, 2, 3, 5, 16),
        jnp.asarray([24.0, 10.0]),
    )


@functools.cache
def params() -> Any:
    """Random parameters without a zero among them, so that every layer acts."""
    drawn = init_params(abstract_params(UNET, *inputs(0)), jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.05 * normal(leaf.size, *leaf.shape), drawn)


def reusing(params: Any, inputs: tuple, deep: Any = None) -> Any:
    return UNET.apply({"params": params}, *inputs, None, deep, DEPTH, method="reusing")


def replacing(params: Any, inputs: tuple, deep: Any) -> Any:
    """The plain U-Net, all of it run, whose own deep feature is seen and replaced on its way."""
    seen = []

    def at_border(call, args, kwargs, context):
        if context.module.path == (f"output_{UNET.max_depth - DEPTH}",):
            own, skip = jnp.split(args[0], [deep.shape[-1]], -1)
            seen.append(own)
            args = (jnp.concatenate([deep, skip], -1), *args[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(at_border):
        return UNET.apply({"params": params}, *inputs), *seen


def test_the_outermost_blocks_run_alone_as_they_do_within_the_whole(relative_error):
    deep: Any = UNET.deep_feature(inputs(0)[0].shape, DEPTH)
    by_hand = jax.jit(replacing)
    lowered = jax.jit(reusing).lower(params(), inputs(0))
    alone = jax.jit(reusing).lower(params(), inputs(0), deep)
    costs: Any = alone.cost_analysis(), lowered.cost_analysis()
    assert costs[0]["flops"] < 0.75 * costs[1]["flops"]
    whole, outermost = lowered.compile(), alone.compile()

    prediction, deep = whole(params(), inputs(0))
    wanted, own = by_hand(params(), inputs(0), deep)
    assert relative_error(deep, own) < 1e-6 and relative_error(prediction, wanted) < 1e-6
    again, kept = outermost(params(), inputs(0), deep)
    assert relative_error(again, prediction) < 1e-6 and np.array_equal(kept, deep)
    # With the deep feature of another input, which is not its own.
    ours, _ = outermost(params(), inputs(7), deep)
    wanted, own = by_hand(params(), inputs(7), deep)
    assert relative_error(ours, wanted) < 1e-6 and relative_error(deep, own) > 0.01
    assert relative_error(ours, by_hand(params(), inputs(7), own)[0]) > 1e-3


@pytest.mark.parametrize(("levels", "blocks"), [((1,), 1), ((1, 2), 2), ((2, 1, 3), 1)])
def test_the_deep_feature_has_the_shape_and_type_foretold(levels, blocks):
    rough = Common(dtype=jnp.bfloat16)
    unet = UNET.clone(channel_mult=levels, num_res_blocks=blocks, common=rough)
    skips, entering = {}, {}

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if len(context.module.path) == 1 and context.method_name == "__call__":
            block, _, index = context.module.path[0].partition("_")
            if block == "input":
                skips[int(index) + 1] = result
            elif block == "output":
                entering[unet.max_depth - int(index)] = args[0]
        return result

    shape = (2, 3, 8, 12, 8)
    with nn.intercept_methods(watch):
        abstract_params(unet, jnp.zeros(shape), *inputs(0)[1:])
    assert set(entering) == set(skips) == set(range(1, unet.max_depth + 1))
    for depth, skip in skips.items():
        foretold, both = unet.deep_feature(shape, depth), entering[depth]
        assert foretold.shape == (*skip.shape[:-1], both.shape[-1] - skip.shape[-1])
        assert foretold.dtype == both.dtype == jnp.bfloat16


@pytest.mark.parametrize("depth", [0, 5])
def test_depths_that_the_network_lacks_are_refused(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}: choose from 1 to 4"):
        UNET.deep_feature(inputs(0)[0].shape, depth)


def test_a_deep_feature_of_another_depth_is_refused():
    deep = UNET.deep_feature(inputs(0)[0].shape, DEPTH + 1)
    with pytest.raises(ValueError, match=f"at depth {DEPTH}: got"):
        jax.eval_shape(reusing, params(), inputs(0), deep)
