"""The U-Net and the VAE's decoder in plain PyTorch, to compare speed and bfloat16 with.

They are written in the way that suits PyTorch best: channels first, its own convolutions and norms,
fused attention. Modules have the Flax modules' names, so that `torch_layers.load` finds parameters.
Frames are merged with the batch: activations are `(b t) c h w`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_layers import Attention, SpatialTransformer, TemporalTransformer, as_clips, as_frames


class UNet(nn.Module):
    """The same as `models.unet.UNet`, for sampling."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        channel_mult: tuple[int, ...],
        num_res_blocks: int,
        attention_resolutions: tuple[int, ...],
        num_head_channels: int,
        context_dim: int,
        image_cross_attention_scale_learnable: bool,
        **_: Any,
    ) -> None:
        super().__init__()
        self.width = model_channels
        context = (num_head_channels, context_dim, image_cross_attention_scale_learnable)
        self.time_embed, self.fs_embed = Embedding(self.width), Embedding(self.width)
        self.input_0 = nn.Conv2d(in_channels, self.width, 3, padding=1)
        self.init_attn = TemporalTransformer(self.width, 8, num_head_channels)
        self.inputs: list[str] = []
        widths = [self.width]
        c = self.width

        def add(name: str, block: nn.Module, names: list[str]) -> None:
            self.add_module(name, block)
            names.append(name)

        def block(inputs: int, channels: int, attends: bool, **ends: bool) -> UNetBlock:
            return UNetBlock(inputs, channels, 4 * self.width, attends, *context, **ends)

        for level, multiplier in enumerate(channel_mult):
            attends = 2**level in attention_resolutions
            for _block in range(num_res_blocks):
                add(f"input_{len(widths)}", block(c, multiplier * self.width, attends), self.inputs)
                c = multiplier * self.width
                widths.append(c)
            if level != len(channel_mult) - 1:
                add(f"input_{len(widths)}", Downsample(c), self.inputs)
                widths.append(c)
        self.middle = block(c, c, True, res_after=True)
        self.outputs: list[str] = []
        for level, multiplier in reversed(list(enumerate(channel_mult))):
            attends = 2**level in attention_resolutions
            for i in range(num_res_blocks + 1):
                ends = {"upsample": level != 0 and i == num_res_blocks}
                new = block(c + widths.pop(), multiplier * self.width, attends, **ends)
                add(f"output_{len(self.outputs)}", new, self.outputs)
                c = multiplier * self.width
        self.out_norm = nn.GroupNorm(32, c)
        self.out = nn.Conv2d(c, out_channels, 3, padding=1)

    def forward(
        self, x: Tensor, timestep: Tensor, text: Tensor, image: Tensor, fs: Tensor
    ) -> Tensor:
        """Takes and returns `(b t) c h w`; text is (b, l, d), image (b, t, n, d)."""
        emb = F.silu(self.time_embed(timestep) + self.fs_embed(fs))
        h = self.init_attn(self.input_0(x), len(text))
        skips = [h]
        for name in self.inputs:
            h = self.get_submodule(name)(h, emb, text, image)
            skips.append(h)
        h = self.middle(h, emb, text, image)
        for name in self.outputs:
            h = self.get_submodule(name)(torch.cat([h, skips.pop()], 1), emb, text, image)
        return self.out(F.silu(self.out_norm(h)))


class Embedding(nn.ModuleDict):
    """Sinusoid, then a two-layer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__(
            {"in": nn.Linear(width, 4 * width), "out": nn.Linear(4 * width, 4 * width)}
        )
        self.width = width

    def forward(self, position: Tensor) -> Tensor:
        half = self.width // 2
        steps = torch.arange(half, dtype=torch.float32, device=position.device)
        angle = position.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
        dtype = next(self.parameters()).dtype
        y = torch.cat([angle.cos(), angle.sin()], -1).to(dtype)
        return self["out"](F.silu(self["in"](y)))


class UNetBlock(nn.Module):
    """Res-block, optional transformers, a second res-block and upsampling."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        embedding: int,
        attends: bool,
        head_width: int,
        context: int,
        learnable_image_scale: bool,
        res_after: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        heads = channels // head_width
        self.res = ResBlock(inputs, channels, embedding)
        self.spatial = self.temporal = self.res_after = self.upsample = None
        if attends:
            self.spatial = SpatialTransformer(
                channels, heads, head_width, context, learnable_image_scale
            )
            self.temporal = TemporalTransformer(channels, heads, head_width)
        if res_after:
            self.res_after = ResBlock(channels, channels, embedding)
        if upsample:
            self.upsample = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor, text: Tensor, image: Tensor) -> Tensor:
        x = self.res(x, emb)
        if self.spatial is not None and self.temporal is not None:
            x = self.temporal(self.spatial(x, text, image), len(text))
        if self.res_after is not None:
            x = self.res_after(x, emb)
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Downsample(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.downsample(x)


class ResBlock(nn.Module):
    """Two convolutions within each frame, then the temporal block."""

    def __init__(self, inputs: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1)
        self.emb = nn.Linear(embedding, channels)
        self.norm2 = nn.GroupNorm(32, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1)
        self.temporal_conv = TemporalBlock(channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift = self.emb(emb).repeat_interleave(len(x) // len(emb), 0)
        y = self.conv1(F.silu(self.norm1(x))) + shift[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return self.temporal_conv(self.skip(x) + y, len(emb))


class TemporalBlock(nn.Module):
    """Four convolutions along time, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for i in range(1, 5):
            self.add_module(f"norm{i}", nn.GroupNorm(32, channels))
            conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            self.add_module(f"conv{i}", conv)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        y = as_clips(x, batch)
        for i in range(1, 5):
            norm, conv = self.get_submodule(f"norm{i}"), self.get_submodule(f"conv{i}")
            y = conv(F.silu(norm(y)))
        return x + as_frames(y)


class VAEDecoder(nn.Module):
    """The same as `models.autoencoder.Autoencoder.decode`: unscaled latents `n c h w` to pixels."""

    def __init__(
        self, *, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, z_channels: int, **_: Any
    ) -> None:
        super().__init__()
        self.post_quant = nn.Conv2d(z_channels, z_channels, 1)
        c = ch * ch_mult[-1]
        decoder: dict[str, nn.Module] = {"conv_in": nn.Conv2d(z_channels, c, 3, padding=1)}
        decoder["mid"] = Middle(c)
        for level, multiplier in reversed(list(enumerate(ch_mult))):
            for i in range(num_res_blocks + 1):
                decoder[f"up_{level}_block_{i}"] = FrameResBlock(c, multiplier * ch)
                c = multiplier * ch
            if level != 0:
                decoder[f"up_{level}_upsample"] = nn.Conv2d(c, c, 3, padding=1)
        decoder["norm_out"] = nn.GroupNorm(32, c, eps=1e-6)
        decoder["conv_out"] = nn.Conv2d(c, 3, 3, padding=1)
        self.decoder = nn.ModuleDict(decoder)

    def forward(self, z: Tensor) -> Tensor:
        x = self.post_quant(z)
        for name, layer in self.decoder.items():
            if name.endswith("upsample"):
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = layer(F.silu(x) if name == "conv_out" else x)
        return x


class Middle(nn.Module):
    """Res-block, attention over the frame, res-block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = FrameResBlock(channels, channels)
        self.attn = FrameAttention(channels)
        self.block_2 = FrameResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn(self.block_1(x)))


class FrameAttention(Attention):
    """Single-head attention of a frame's pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, channels, bias=True)
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(self.norm(x).flatten(2).transpose(1, 2))
        return x + y.transpose(1, 2).reshape(x.shape)


class FrameResBlock(nn.Module):
    """The VAE's res-block."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))
