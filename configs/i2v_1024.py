r"""DynamiCrafter 1024: image-to-video at 576x1024, 16 frames.

    python sample.py --config=configs/i2v_1024.py --checkpoint=model.ckpt \
        --image=picture.png --prompt="a man surfing" --output=out.mp4

`fs` is an FPS of 5 to 15; a lower one asks for more motion.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_512


def get_config() -> ConfigDict:
    """Returns the hyperparameters of the 1024 release."""
    config = i2v_512.get_config()
    config.name = "i2v_1024"
    config.unet.default_fs = 10
    config.diffusion.base_scale = 0.3
    config.sampling.height = 576
    config.sampling.width = 1024
    config.sampling.fps = 10
    config.sampling.vae_frames = 1
    return config
