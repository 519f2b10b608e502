"""The spatio-temporal U-Net, which predicts the noise or velocity of a clip's latents."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from dynamicrafter_jax.models.blocks import Downsample, UNetBlock
from dynamicrafter_jax.models.layers import Conv, GroupNorm, Linear, Module
from dynamicrafter_jax.models.partitioning import WITHIN_FRAMES, constrain
from dynamicrafter_jax.models.transformers import TemporalTransformer


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


_Block = Callable[[Array], Array]


class UNet(Module):
    """DynamiCrafter's denoiser (arXiv 2310.12190, on the backbone of VideoCrafter).

    Attributes:
        in_channels: Channels of the input: noisy latent and concatenated image latent.
        out_channels: Channels of the prediction.
        model_channels: Width of the first level.
        channel_mult: Width of each level, as a multiple of `model_channels`.
        num_res_blocks: Res-blocks per level on the way down; one more on the way up.
        attention_resolutions: Downsampling factors at which transformers follow res-blocks.
        num_head_channels: Width of an attention head.
        context_dim: Width of text and image tokens.
        temporal_length: Number of frames in the clips it was trained on; any other number works.
        dropout: Dropout rate in res-blocks and temporal convolutions, in training.
        image_cross_attention_scale_learnable: Whether image attention has a learned scale.
        default_fs: The `fs` condition to use when none is chosen.
        norm_groups: Groups of channels that are normalised together.
        remat: One of `REMAT_POLICIES`: what the backward pass recomputes.
    """

    in_channels: int = 8
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (1, 2, 4)
    num_head_channels: int = 64
    context_dim: int = 1024
    temporal_length: int = 16
    dropout: float = 0.1
    image_cross_attention_scale_learnable: bool = False
    default_fs: int = 24
    norm_groups: int = 32
    remat: str = "none"

    def __post_init__(self) -> None:
        """Makes every norm inside use `norm_groups`."""
        super().__post_init__()
        self.share(norm_groups=self.norm_groups)

    @property
    def size_multiple(self) -> int:
        """Latent height and width must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def max_depth(self) -> int:
        """The largest depth that `reusing` takes: the number of input blocks."""
        return len(self.channel_mult) * (self.num_res_blocks + 1)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        timestep: Num[Array, " b"],
        text: Float[Array, "b m d"],
        image: Float[Array, "b *frames n d"],
        fs: Num[Array, " b"],
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b t h w out"]:
        """Returns the prediction for noisy latents.

        Args:
            x: Noisy latents and image latent, concatenated on channels.
            timestep: Diffusion timesteps, 0 to 999, possibly fractional.
            text: Text tokens.
            image: Image tokens for each frame, (b, t, n, d); or for all frames, (b, n, d).
            fs: Frame stride (256) or FPS (512, 1024).
            dropout_keys: A key for each clip turns dropout on, for training.

        Raises:
            ValueError: Channels or sides of `x` don't fit this network.
        """
        return self.reusing(x, timestep, text, image, fs, dropout_keys)[0]

    @nn.compact
    def reusing(
        self,
        x: Float[Array, "b t h w c"],
        timestep: Num[Array, " b"],
        text: Float[Array, "b m d"],
        image: Float[Array, "b *frames n d"],
        fs: Num[Array, " b"],
        dropout_keys: Key[Array, " b"] | None = None,
        deep: Float[Array, "b t h2 w2 c2"] | None = None,
        depth: int = 1,
    ) -> tuple[Float[Array, "b t h w out"], Float[Array, "b t h2 w2 c2"]]:
        """Returns the prediction and the deep feature, which calls at later steps may reuse.

        From one step of a sampler to the next, deep layers change little (DeepCache, arXiv
        2312.00858). At depth d, the first d input blocks and the last d output blocks, which read
        what these input blocks make, are outermost, and the deep feature is what the blocks within
        hand to the outermost. Given it, only the outermost blocks run. At `max_depth`, the middle
        block alone is left out.

        Args:
            x: See `__call__`.
            timestep: See `__call__`.
            text: See `__call__`.
            image: See `__call__`.
            fs: See `__call__`.
            dropout_keys: See `__call__`.
            deep: The deep feature of another call at the same depth; None to compute it.
            depth: Number of outermost input blocks, and of output blocks.

        Raises:
            ValueError: There is no such depth, or `x` or `deep` don't fit this network.
        """
        self._check(x, text)
        feature = self.deep_feature(x.shape, depth)
        if deep is not None and deep.shape != feature.shape:
            raise ValueError(
                f"a deep feature is {feature.shape} at depth {depth}: got {deep.shape}"
            )
        emb = Embedding(self.model_channels, name="time_embed")(timestep)
        emb += Embedding(self.model_channels, zero=True, name="fs_embed")(fs)
        condition = (
            jax.nn.silu(emb),
            text.astype(self.dtype),
            image.astype(self.dtype),
            dropout_keys,
        )
        inputs, middle, outputs = self._blocks(condition)

        h = constrain(x.astype(self.dtype), WITHIN_FRAMES[:2])
        skips = []
        for block in inputs if deep is None else inputs[:depth]:
            h = block(h)
            skips.append(h)
        h = middle(h) if deep is None else deep
        while skips:
            if len(skips) == depth:
                deep = h
            block = outputs[-len(skips)]
            h = block(jnp.concatenate([h, skips.pop()], axis=-1))
        assert deep is not None
        h = jax.nn.silu(GroupNorm(name="out_norm")(h))
        return Conv(self.out_channels, zero=True, name="out")(h), deep

    def deep_feature(self, shape: tuple[int, ...], depth: int) -> jax.ShapeDtypeStruct:
        """Returns the shape and type of the deep feature that `reusing` makes at a depth.

        Args:
            shape: Shape of latents, (b, t, h, w, c).
            depth: As in `reusing`.

        Raises:
            ValueError: There is no such depth.
        """
        if not 1 <= depth <= self.max_depth:
            raise ValueError(f"depth is {depth}: choose from 1 to {self.max_depth} for this U-Net")
        # A level has as many input blocks as output blocks. The feature has the sides of the
        # outermost blocks' last one, and the channels of the next one, which is inside.
        level, inside = ((block // (self.num_res_blocks + 1)) for block in (depth - 1, depth))
        b, t, h, w, _ = shape
        channels = self.channel_mult[min(inside, len(self.channel_mult) - 1)] * self.model_channels
        return jax.ShapeDtypeStruct((b, t, h // 2**level, w // 2**level, channels), self.dtype)

    @nn.nowrap
    def _blocks(
        self, condition: tuple[Array | None, ...]
    ) -> tuple[list[_Block], _Block, list[_Block]]:
        """Returns the input blocks, the middle block and the output blocks, in the order they run.

        Parameters are made by those that are called.
        """
        rematerialized = rematerialize(UNetBlock, self.remat)
        per_level, last_level = self.num_res_blocks + 1, len(self.channel_mult) - 1

        def block(level: int, name: str, **kind: bool) -> _Block:
            kind = {"attends": 2**level in self.attention_resolutions} | kind
            layer = rematerialized(
                self.channel_mult[level] * self.model_channels,
                **kind,
                num_head_channels=self.num_head_channels,
                dropout=self.dropout,
                learnable_image_scale=self.image_cross_attention_scale_learnable,
                name=name,
            )
            return lambda h: layer(h, *condition)

        def first(x: Array) -> Array:
            h = Conv(self.model_channels, name="input_0")(x)
            return TemporalTransformer(8, self.num_head_channels, name="init_attn")(h)

        inputs: list[_Block] = [first]
        for index in range(1, self.max_depth):
            level, place = divmod(index, per_level)
            name = f"input_{index}"
            inputs.append(block(level, name) if place else Downsample(name=name))
        middle = block(last_level, "middle", attends=True, res_after=True)
        outputs = []
        for index in range(self.max_depth):
            up, place = divmod(index, per_level)
            level = last_level - up
            upsample = level != 0 and place == self.num_res_blocks
            outputs.append(block(level, f"output_{index}", upsample=upsample))
        return inputs, middle, outputs

    def _check(self, x: Array, text: Array) -> None:
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"the U-Net takes {self.in_channels} channels, got {x.shape[-1]}")
        if x.shape[2] % self.size_multiple or x.shape[3] % self.size_multiple:
            raise ValueError(
                f"latent sides must be multiples of {self.size_multiple}, got {x.shape[2:4]}"
            )
        if text.shape[-1] != self.context_dim:
            raise ValueError(f"text tokens must be {self.context_dim} wide, got {text.shape[-1]}")


class Embedding(Module):
    """Sinusoidal embedding of a scalar, then a two-layer perceptron to four times the width."""

    width: int
    zero: bool = False

    @nn.compact
    def __call__(self, position: Num[Array, " b"]) -> Float[Array, "b d"]:
        width = 4 * self.width
        y = sinusoid(position, self.width)
        y = jax.nn.silu(Linear((width,), ("embed", "mlp"), name="in")(y))
        return Linear((width,), ("mlp", "embed"), zero=self.zero, name="out")(y)


def sinusoid(position: Num[Array, " b"], width: int) -> Float[Array, "b {width}"]:
    """Returns a sinusoidal embedding: cosines, then sines (arXiv 1706.03762, section 3.5).

    Args:
        position: Timesteps, frame strides or FPS.
        width: Width of the embedding, an even number.
    """
    half = width // 2
    frequency = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
