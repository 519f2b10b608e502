r"""Stage 2 of the paper: projector and spatial layers, adapted to the video model (section 3.4).

    python train.py --config=stage2 --workdir=DIR --config.data.source=webvid.csv \
        --config.init.checkpoint=stage1/

Nothing is concatenated to the noise yet. Temporal layers stay frozen.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_256


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = i2v_256.get_config()
    config.name = "stage2"
    config.precision.dtype = "bfloat16"
    config.mesh.data = -1  # all devices
    config.train.trainable = "projector_and_spatial"
    config.train.concat = "nothing"
    config.train.learning_rate = 5e-5
    return config
