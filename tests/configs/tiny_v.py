"""A small model that is otherwise like the 512 release; the golden files `tiny_v_*` are its."""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_512


def shrink(config: ConfigDict) -> ConfigDict:
    """Returns `config` with every network small, for 4 frames of 64x96 pixels."""
    config.unet.update(
        model_channels=64,
        channel_mult=(1, 2),
        attention_resolutions=(1, 2),
        num_head_channels=16,
        context_dim=48,
        temporal_length=4,
    )
    config.vae.update(ch=64, ch_mult=(1, 1, 2, 2), num_res_blocks=1)
    config.text_encoder.update(width=48, layers=3, heads=4)
    config.image_encoder.update(width=64, layers=2, head_width=16)
    config.projector.update(
        dim=32, depth=2, dim_head=8, heads=3, embedding_dim=64, output_dim=48, video_length=4
    )
    config.sampling.update(height=64, width=96, num_frames=4)
    return config


def get_config() -> ConfigDict:
    """Returns the small v-prediction model."""
    config = shrink(i2v_512.get_config())
    config.name = "tiny_v"
    return config
