"""Samples in plain PyTorch, doing the same work as `sampling.py`, and prints the seconds per clip.

    python benchmarks/torch_sampling.py --config=i2v_512

It runs all guided passes of the U-Net as one batch, and the VAE's decoder frame by frame, with
random weights, in bfloat16 on a GPU. Encoding text and image takes next to no time and is left out.
The last line ends with the seconds per clip.
"""

import argparse
import sys
import time
from statistics import median

import torch
import torch_models
from ml_collections import ConfigDict

from dynamicrafter_jax.config import load_config


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--config", required=True, help="a name, as i2v_512, or a file")
    parser.add_argument("--steps", type=int, help="in place of the config's")
    parser.add_argument("--repeats", type=int, default=3, help="timed clips, after one that is not")
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    config.sampling.steps = arguments.steps or config.sampling.steps
    with torch.inference_mode():
        seconds = sample(config, arguments.repeats, compiled=arguments.compile)
    sys.stdout.write(f"PyTorch {torch.__version__}, seconds a clip: {median(seconds):.4g}\n")
    return 0


def sample(config: ConfigDict, repeats: int, *, compiled: bool) -> list[float]:
    """Returns the seconds of each clip."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    unet, decoder = build(config, device, dtype)
    denoiser = torch.compile(unet) if compiled else unet
    size, t = config.sampling, config.sampling.num_frames
    multiple = 8 * 2 ** (len(config.unet.channel_mult) - 1)
    h, w = (-(-side // multiple) * multiple // 8 for side in (size.height, size.width))
    z, width = config.vae.z_channels, config.unet.context_dim
    passes = 1 if size.guidance_scale == 1 else 2

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    text = draw(passes, config.text_encoder.context_length, width)
    image = draw(passes, t, config.projector.num_queries, width)
    concat = draw(t, config.unet.in_channels - z, h, w)
    fs = torch.full((passes,), float(size.fps), device=device)

    def clip() -> None:
        x = draw(t, z, h, w)
        for step in reversed(range(size.steps)):
            timestep = torch.full((passes,), float(step), device=device)
            both = torch.cat([x, concat], 1).repeat(passes, 1, 1, 1)
            conditional, *rest = denoiser(both, timestep, text, image, fs).chunk(passes)
            guided = (
                rest[0] + size.guidance_scale * (conditional - rest[0]) if rest else conditional
            )
            x = 0.98 * x - 0.02 * guided + 0.02 * torch.randn_like(x)
        for frame in x:
            decoder(frame[None])
        if on_gpu:
            torch.cuda.synchronize()

    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        clip()
        found.append(time.perf_counter() - start)
    return found[1:]


def build(
    config: ConfigDict, device: torch.device, dtype: torch.dtype
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Builds both networks, with weights small enough that nothing overflows."""
    with torch.device("meta"):
        networks = (
            torch_models.UNet(**config.unet.to_dict()),
            torch_models.VAEDecoder(**config.vae.to_dict()),
        )
    for network in networks:
        network.to(dtype).to_empty(device=device).eval()
        for parameter in network.parameters():
            parameter.normal_(0, 0.02)
    return networks


if __name__ == "__main__":
    sys.exit(main())
