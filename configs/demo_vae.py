r"""The demo model's VAE, trained on single frames of drawn clips.

    python train.py --config=configs/demo_vae.py --workdir=runs/demo_vae
    python -m dynamicrafter_jax.convert --input=runs/demo_vae --output=demo_vae

The first of three recipes, see docs/training.md.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import demo


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = demo.get_config()
    config.sampling.num_frames = 2  # few from each clip, to see more clips
    config.data.min_stride = config.data.max_stride = 15

    config.train.objective = "reconstruct"
    config.train.trainable = "vae"
    config.train.kl_weight = 1e-4
    config.train.steps = 3000
    config.train.batch_size = 4
    config.train.learning_rate = 2e-3
    config.train.decay = "cosine"
    config.train.warmup_steps = 50
    config.train.clip_norm = 1.0
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 500
    config.train.validate_every = 500
    config.train.validation_clips = 256
    config.train.sample_every = 0
    return config
