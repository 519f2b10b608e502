r"""Fine-tune the demo model on a folder of videos, in three minutes on two CPU cores.

    python train.py --config=finetune_demo --workdir=DIR --config.data.source=videos/

Videos are cut to 64x64 pixels and 16 frames. On two CPU cores, a step takes about a second, and
compilation a minute. See docs/faq.md.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import demo


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = demo.get_config()
    config.name = "finetune_demo"
    config.init.checkpoint = "demo"
    config.data.source = ""
    config.data.validation = ""
    config.data.max_stride = 3

    config.train.steps = 80
    config.train.batch_size = 4
    config.train.timestep_power = 1.0
    config.train.optimizer = "adamw"
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 10
    config.train.beta1 = 0.9
    config.train.beta2 = 0.999
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 40
    config.train.log_every = 10
    config.train.sample_every = 80
    config.train.sample_clips = 2
    return config
