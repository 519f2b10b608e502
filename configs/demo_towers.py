r"""The demo model's text and vision tower and its projector, trained to match clips and captions.

    python train.py --config=configs/demo_towers.py --workdir=runs/demo_towers \
        --config.init.checkpoint=demo_vae
    python -m dynamicrafter_jax.convert --input=runs/demo_towers --output=demo_towers

The second of three recipes, see docs/training.md. The VAE is not used, only passed on.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import demo


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = demo.get_config()
    config.sampling.num_frames = 2  # the first and the last frame of a clip
    config.data.min_stride = config.data.max_stride = 15
    config.data.condition_dropout = 0.0
    config.data.workers = 2

    config.train.objective = "align"
    config.train.trainable = "towers"
    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3
    config.train.decay = "cosine"
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.0
    config.train.validation_clips = 256
    config.train.sample_every = 0
    return config
