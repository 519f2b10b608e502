"""The smallest model that runs the whole path, for tests of structure: quick to compile."""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_512


def get_config() -> ConfigDict:
    """Returns a v-prediction model for 3 frames of 16x24 pixels."""
    config = i2v_512.get_config()
    config.name = "micro"
    config.unet.update(
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(1,),
        num_head_channels=16,
        context_dim=16,
        temporal_length=3,
    )
    config.vae.update(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    config.text_encoder.update(width=16, layers=2, heads=2)
    config.image_encoder.update(width=16, layers=1, head_width=8, patch_size=14, image_size=28)
    config.projector.update(
        dim=16, depth=1, dim_head=8, heads=2, embedding_dim=16, output_dim=16, video_length=3
    )
    config.sampling.update(height=16, width=24, num_frames=3)
    return config
