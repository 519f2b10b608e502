r"""Stage 3 of the paper: trains the same as stage 2, with the image concatenated (section 3.4).

    python train.py --config=stage3 --workdir=DIR --config.data.source=webvid.csv \
        --config.init.checkpoint=stage2/

Temporal layers stay frozen.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_256


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = i2v_256.get_config()
    config.name = "stage3"
    config.precision.dtype = "bfloat16"
    config.mesh.data = -1  # all devices
    config.train.trainable = "projector_and_spatial"
    config.train.learning_rate = 5e-5
    return config
