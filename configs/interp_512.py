r"""DynamiCrafter 512 interpolation and looping: first and last frame given, at 320x512.

    python sample.py --config=configs/interp_512.py --checkpoint=model.ckpt \
        --image=first.png --end_image=last.png --prompt="a smiling girl" --output=out.mp4
    python sample.py --config=configs/interp_512.py --checkpoint=model.ckpt \
        --image=first.png --loop --prompt="flowers swaying in the wind" --output=out.mp4

The release has one model for both.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_512


def get_config() -> ConfigDict:
    """Returns the hyperparameters of the 512 interpolation release."""
    config = i2v_512.get_config()
    config.name = "interp_512"
    config.sampling.fps = 5
    config.data.random_frame = False
    config.train.concat = "ends"
    return config
