"""Classifier-free guidance: several passes of one denoiser, combined.

Scales are arrays, with one value for the batch or one per sample, so changing them does not
recompile. Arithmetic and results are float32, whatever dtype the denoiser returns.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from dynamicrafter_jax.diffusion.caches import GuidanceTables
from dynamicrafter_jax.diffusion.loop import Carry, Denoiser
from dynamicrafter_jax.diffusion.prediction import PerSample, float32, per_sample

Condition = Any
"""A pytree of arrays whose leading axis is the batch."""

ConditionalDenoiser = Callable[[Array, Array, Array, Condition, Carry], tuple[Array, Carry]]
"""(x (b, ...), timestep (b,), index (), condition, carry) -> (prediction (b, ...), carry)."""

Passes = Callable[[Array, Array, Array, Carry], tuple[Array, Carry]]
"""(x (b, ...), timestep (b,), index (), carry) -> (predictions (k, b, ...), carry)."""


class GuidedCarry(NamedTuple):
    """What guidance across steps keeps.

    Attributes:
        denoiser: The denoiser's own carry.
        differences: Of the other passes to the conditional one, at the last step that ran them;
            with k passes, the k - 1 differences of one sample are next to each other.
    """

    denoiser: Carry
    differences: Float32[Array, "rows *shape"]


def guide(
    conditional: Float[Array, "b *shape"],
    unconditional: Float[Array, "b *shape"],
    guidance_scale: PerSample,
) -> Float32[Array, "b *shape"]:
    """Returns uncond + scale (cond - uncond) (Eq. 6, arXiv 2207.12598, with scale = 1 + w)."""
    conditional, unconditional = float32(conditional), float32(unconditional)
    return unconditional + per_sample(guidance_scale, conditional) * (conditional - unconditional)


def guide_two_scale(
    conditional: Float[Array, "b *shape"],
    image_only: Float[Array, "b *shape"],
    unconditional: Float[Array, "b *shape"],
    guidance_scale: PerSample,
    image_guidance_scale: PerSample,
) -> Float32[Array, "b *shape"]:
    """Guides with one scale for the text and one for the image (Eq. 3, arXiv 2211.09800).

    Args:
        conditional: Prediction under text and image.
        image_only: Prediction under the image without text.
        unconditional: Prediction under neither.
        guidance_scale: How far to go from `image_only` to `conditional`.
        image_guidance_scale: How far to go from `unconditional` to `image_only`.
    """
    toward_image = guide(image_only, unconditional, image_guidance_scale)
    toward_text = float32(conditional) - float32(image_only)
    return toward_image + per_sample(guidance_scale, conditional) * toward_text


def rescale_guidance(
    guided: Float[Array, "b *shape"],
    conditional: Float[Array, "b *shape"],
    guidance_rescale: PerSample,
) -> Float32[Array, "b *shape"]:
    """Rescales each sample towards the standard deviation of the conditional prediction.

    Eq. 15 and 16 of arXiv 2305.08891, over all axes but the batch. A constant `guided` has no
    deviation to scale and is returned unchanged.

    Args:
        guided: Combined prediction.
        conditional: Prediction under all conditions.
        guidance_rescale: phi, from 0 (leaves `guided`) to 1 (the conditional's deviation).
    """
    guided = float32(guided)
    axes = tuple(range(1, guided.ndim))
    deviation = jnp.std(guided, axes, keepdims=True)
    wanted = jnp.std(float32(conditional), axes, keepdims=True)
    ratio = jnp.where(deviation > 0, wanted / jnp.where(deviation > 0, deviation, 1), 1)
    phi = per_sample(guidance_rescale, guided)
    return guided * (phi * ratio + (1 - phi))


def guided_denoiser(
    denoiser: ConditionalDenoiser,
    conditions: Sequence[Condition],
    *,
    guidance_scale: PerSample,
    image_guidance_scale: PerSample | None = None,
    guidance_rescale: PerSample,
    sequential: bool = False,
    tables: GuidanceTables | None = None,
) -> Denoiser:
    """Binds conditions to a denoiser and guides it.

    With k conditions, each leaf of the denoiser's carry either has a leading axis of k b, with the
    passes of one sample next to each other, or is a scalar, which all passes share and change in
    the same way. This holds for both ways of running, so they can share a carry.

    With `tables`, only the conditional pass runs at some steps. The others are then taken to differ
    from it as they last did, or not at all, which leaves it as it is but for rounding. The carry of
    the guided denoiser is a `GuidedCarry`, whose `differences` have a leading axis of (k - 1) b. Of
    the denoiser's carry, a conditional pass that runs alone reads and writes its own rows, and
    scalars; the rows of other passes stay.

    Args:
        denoiser: A single pass.
        conditions: k conditions with the same structure and shapes: (conditional,), which is
            neither guided nor rescaled; (conditional, unconditional); or (conditional, image_only,
            unconditional).
        guidance_scale: Scale of the condition, or of its text if there are three.
        image_guidance_scale: Scale of the image; needed with three conditions, unused with fewer.
        guidance_rescale: phi of `rescale_guidance`.
        sequential: Whether to run the passes one after another, which needs the memory of one,
            instead of as one batch.
        tables: Which passes each step runs; None to run all of them at every step. Where `kept` is
            not 0, an earlier step must have run all.

    Raises:
        ValueError: The number of conditions is not 1, 2 or 3, a scale is missing, or there are
            tables for a single condition.
    """
    if len(conditions) not in (1, 2, 3):
        raise ValueError(f"guidance takes 1, 2 or 3 conditions, not {len(conditions)}")
    if len(conditions) == 1:
        if tables is not None:
            raise ValueError("a single condition is not guided, so it takes no tables")
        (condition,) = conditions
        return lambda x, timestep, index, carry: denoiser(x, timestep, index, condition, carry)
    if len(conditions) == 3 and image_guidance_scale is None:
        raise ValueError("guidance under three conditions needs an image_guidance_scale")
    passes = (_sequential_passes if sequential else _batched_passes)(denoiser, conditions)
    if tables is not None:
        passes = _passes_across_steps(passes, denoiser, conditions, tables)

    def guided_pass(x: Array, timestep: Array, index: Array, carry: Carry) -> tuple[Array, Carry]:
        predictions, carry = passes(x, timestep, index, carry)
        conditional, unconditional = predictions[0], predictions[-1]
        if image_guidance_scale is None or len(conditions) == 2:
            guided = guide(conditional, unconditional, guidance_scale)
        else:
            guided = guide_two_scale(
                conditional, predictions[1], unconditional, guidance_scale, image_guidance_scale
            )
        return rescale_guidance(guided, conditional, guidance_rescale), carry

    return guided_pass


def _batched_passes(denoiser: ConditionalDenoiser, conditions: Sequence[Condition]) -> Passes:
    """Runs all passes in one call, with a batch of k b."""
    k = len(conditions)
    stacked = jax.tree.map(lambda *leaves: _merge(jnp.stack(leaves)), *conditions)

    def run(x: Array, timestep: Array, index: Array, carry: Carry) -> tuple[Array, Carry]:
        prediction, carry = denoiser(
            jnp.repeat(x, k, 0), jnp.repeat(timestep, k, 0), index, stacked, carry
        )
        return _split(prediction, k), carry

    return run


def _sequential_passes(denoiser: ConditionalDenoiser, conditions: Sequence[Condition]) -> Passes:
    """Runs one pass after another, in a loop that compiles the denoiser once."""
    k = len(conditions)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *conditions)

    def run(x: Array, timestep: Array, index: Array, carry: Carry) -> tuple[Array, Carry]:
        carries = jax.tree.map(
            lambda leaf: _split(leaf, k) if jnp.ndim(leaf) else jnp.broadcast_to(leaf, k), carry
        )
        predictions, carries = jax.lax.map(
            lambda condition_and_carry: denoiser(x, timestep, index, *condition_and_carry),
            (stacked, carries),
        )
        merged = jax.tree.map(
            lambda leaf, before: _merge(leaf) if jnp.ndim(before) else leaf[-1], carries, carry
        )
        return predictions, merged

    return run


def _passes_across_steps(
    passes: Passes,
    denoiser: ConditionalDenoiser,
    conditions: Sequence[Condition],
    tables: GuidanceTables,
) -> Passes:
    """Runs all passes at some steps and the conditional one alone at the others."""
    k = len(conditions)

    def run(
        x: Array, timestep: Array, index: Array, carry: GuidedCarry
    ) -> tuple[Array, GuidedCarry]:
        def run_all(carry: GuidedCarry) -> tuple[Array, GuidedCarry]:
            predictions, inner = passes(x, timestep, index, carry.denoiser)
            predictions = float32(predictions)
            return predictions, GuidedCarry(inner, _merge(predictions[1:] - predictions[:1]))

        def run_conditional(carry: GuidedCarry) -> tuple[Array, GuidedCarry]:
            own = jax.tree.map(
                lambda leaf: _split(leaf, k)[0] if jnp.ndim(leaf) else leaf, carry.denoiser
            )
            prediction, own = denoiser(x, timestep, index, conditions[0], own)
            inner = jax.tree.map(
                lambda leaf, new: _merge(_split(leaf, k).at[0].set(new)) if jnp.ndim(leaf) else new,
                carry.denoiser,
                own,
            )
            conditional = float32(prediction)[None]
            others = conditional + kept * _split(carry.differences, k - 1)
            return jnp.concatenate([conditional, others]), GuidedCarry(inner, carry.differences)

        kept = jnp.asarray(tables.kept)[index]
        return jax.lax.cond(jnp.asarray(tables.all_passes)[index], run_all, run_conditional, carry)

    return run


def _merge(passes: Array) -> Array:
    """Reshapes (k, b, ...) to (b k, ...), sample-major, so batches split over devices stay put."""
    return jnp.moveaxis(passes, 0, 1).reshape(-1, *passes.shape[2:])


def _split(batch: Array, k: int) -> Array:
    """Reshapes (b k, ...) to (k, b, ...), which undoes `_merge`."""
    return jnp.moveaxis(batch.reshape(-1, k, *batch.shape[1:]), 1, 0)
