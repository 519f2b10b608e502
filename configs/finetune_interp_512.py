r"""Fine-tune DynamiCrafter 512 for interpolation and loops, as it was released.

    python train.py --config=finetune_interp_512 --workdir=DIR --config.data.source=videos/ \
        --config.init.checkpoint=model.ckpt

The first and the last frame of a clip are given, and the first is the conditioning image. See
docs/training.md.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import interp_512


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = interp_512.get_config()
    config.name = "finetune_interp_512"
    config.precision.dtype = "bfloat16"
    config.mesh.data = -1  # all devices
    return config
