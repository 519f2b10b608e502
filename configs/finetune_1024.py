r"""Fine-tune DynamiCrafter 1024 as it was released: 576x1024, one clip per device.

    python train.py --config=finetune_1024 --workdir=DIR --config.data.source=videos/ \
        --config.init.checkpoint=model.ckpt

See docs/training.md.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_1024


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = i2v_1024.get_config()
    config.name = "finetune_1024"
    config.precision.dtype = "bfloat16"
    config.mesh.data = -1  # all devices
    return config
