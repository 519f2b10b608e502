r"""Fine-tune DynamiCrafter 512 as it was released: U-Net and projector, AdamW at 1e-5.

    python train.py --config=finetune_512 --workdir=DIR --config.data.source=videos/ \
        --config.init.checkpoint=model.ckpt

The loss starts near the release's loss on your videos (about 0.1) and falls slowly; see
docs/training.md. Computations are in bfloat16, parameters in float32.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_512


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = i2v_512.get_config()
    config.name = "finetune_512"
    config.precision.dtype = "bfloat16"
    config.mesh.data = -1  # all devices
    return config
