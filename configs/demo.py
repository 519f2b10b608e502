"""A model small enough for a laptop's CPU: the same networks, 128x128, 16 frames.

    python -m dynamicrafter_jax.demo

animates a photograph with it. Its weights are random until a trained demo model ships, so what
comes out is noise of the right shape.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_512


def get_config() -> ConfigDict:
    """Returns the hyperparameters of the demo model."""
    config = i2v_512.get_config()
    config.name = "demo"

    config.unet.model_channels = 64
    config.unet.channel_mult = (1, 2)
    config.unet.num_res_blocks = 1
    config.unet.attention_resolutions = (1, 2)
    config.unet.num_head_channels = 32
    config.unet.context_dim = 64

    config.vae.ch = 32
    config.vae.ch_mult = (1, 2, 2, 2)
    config.vae.num_res_blocks = 1

    config.text_encoder.width = 64
    config.text_encoder.layers = 3
    config.text_encoder.heads = 4

    config.image_encoder.width = 64
    config.image_encoder.layers = 2
    config.image_encoder.head_width = 16

    config.projector.dim = 64
    config.projector.depth = 2
    config.projector.dim_head = 16
    config.projector.heads = 4
    config.projector.embedding_dim = 64
    config.projector.output_dim = 64

    config.sampling.height = 128
    config.sampling.width = 128
    config.sampling.steps = 10
    return config
