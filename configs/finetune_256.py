r"""Fine-tune DynamiCrafter 256 as it was released: eps-prediction, conditioned on the stride.

    python train.py --config=finetune_256 --workdir=DIR --config.data.source=videos/ \
        --config.init.checkpoint=model.ckpt

See docs/training.md.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_256


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = i2v_256.get_config()
    config.name = "finetune_256"
    config.precision.dtype = "bfloat16"
    config.mesh.data = -1  # all devices
    return config
