r"""Distil the demo model: four steps without guidance, for its eight with guidance.

    python train.py --config=distill_demo --workdir=DIR

For two steps, distil the result again: it needs no guidance by then.

    python -m dynamicrafter_jax.convert --input=DIR --output=four
    python train.py --config=distill_demo --workdir=DIR2 --config.init.checkpoint=four \
        --config.train.distill_steps=2 --config.train.distill_guidance_scale=1 \
        --config.sampling.steps=2

See docs/training.md.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import demo


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = demo.get_config()
    config.name = "distill_demo"
    config.init.checkpoint = "demo"

    config.sampling.solver = "euler"
    config.sampling.steps = 4
    config.sampling.guidance_scale = 1.0
    config.sampling.guidance_stop = 1.0
    config.sampling.distilled = True
    for name in list(config.sampling.presets):  # it knows its own few steps alone
        config.sampling.presets[name] = ConfigDict()

    config.train.objective = "distill"
    config.train.trainable = "unet"
    config.train.distill_guidance_scale = 5.0  # as the demo samples, and to half of the run
    config.train.distill_guidance_stop = 0.5
    config.train.steps = 3000
    config.train.batch_size = 16
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-4
    config.train.beta1 = 0.9
    config.train.beta2 = 0.999
    config.train.decay = "cosine"
    config.train.ema_decay = 0.999
    return config
