r"""DynamiCrafter 256: image-to-video at 256x256, with eps-prediction and `fs` as a stride.

    python sample.py --config=configs/i2v_256.py --checkpoint=model.ckpt \
        --image=picture.png --prompt="a man surfing" --output=out.mp4

`fs` is a stride of 1 to 6 frames; a larger one asks for more motion.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_512


def get_config() -> ConfigDict:
    """Returns the hyperparameters of the 256 release."""
    config = i2v_512.get_config()
    config.name = "i2v_256"
    config.unet.image_cross_attention_scale_learnable = True
    config.unet.default_fs = 3
    config.diffusion.parameterization = "eps"
    config.diffusion.rescale_betas_zero_snr = False
    config.diffusion.use_dynamic_rescale = False
    config.sampling.height = 256
    config.sampling.width = 256
    config.sampling.guidance_rescale = 0.0
    config.sampling.spacing = "uniform"
    config.sampling.fps = 3  # a stride of 1 to 6 frames
    config.data.fs = "stride"
    return config
