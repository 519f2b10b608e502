r"""Stage 1 of the paper: projector and image attention, on single frames (section 3.4).

    python train.py --config=stage1 --workdir=DIR --config.data.source=webvid.csv \
        --config.init.videocrafter=model.ckpt --config.init.clip=open_clip.safetensors

The paper starts from a text-to-image model. Here, a text-to-video model is trained on clips of one
frame, which are images. Nothing is concatenated to the noise.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_256


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = i2v_256.get_config()
    config.name = "stage1"
    config.precision.dtype = "bfloat16"
    config.mesh.data = -1  # all devices
    config.sampling.num_frames = 1
    config.data.max_stride = 1
    config.train.trainable = "projector_and_image_attention"
    config.train.concat = "nothing"
    config.train.learning_rate = 1e-4
    return config
