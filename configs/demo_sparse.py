r"""The demo model's U-Net, projector and words, trained on four of each clip's sixteen frames.

    python train.py --config=configs/demo_sparse.py --workdir=runs/demo_sparse \
        --config.init.checkpoint=demo_towers
    python -m dynamicrafter_jax.convert --input=runs/demo_sparse --output=demo_sparse

The third of four recipes, see docs/training.md. Its clips last as long as others, and the frames
read the projector's queries of the frames that they are of sixteen. So what words mean can be
learned here, for a quarter of the arithmetic.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import demo


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = demo.get_config()
    config.sampling.num_frames = 4
    config.data.min_stride = config.data.max_stride = 5
    config.data.fs = "source_fps"

    config.train.batch_size = 32
    config.train.steps = 1350
    config.train.sample_every = 0
    return config
