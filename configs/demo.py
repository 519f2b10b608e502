r"""A model small enough for a laptop's CPU: the same networks, 64x64, 16 frames.

    python -m dynamicrafter_jax.demo

animates pictures with it. It is trained from scratch, only on drawn clips (`data/synthetic`): the
VAE with `demo_vae`, the towers with `demo_towers`, and then the U-Net and the projector with

    python train.py --config=configs/demo.py --workdir=runs/demo --config.init.towers=demo_towers

See docs/training.md, also for how the model that ships was made. `fs` is an FPS of 6 to 24; a lower
one asks for more motion.
"""

from ml_collections import ConfigDict

from dynamicrafter_jax.configs import i2v_512


def get_config() -> ConfigDict:
    """Returns the demo model, and how its U-Net and projector are trained."""
    config = i2v_512.get_config()
    config.name = "demo"

    config.unet.in_channels = 32
    config.unet.out_channels = 16
    config.unet.model_channels = 64
    config.unet.channel_mult = (1, 2)
    config.unet.num_res_blocks = 1
    config.unet.attention_resolutions = (1, 2)
    config.unet.num_head_channels = 16
    config.unet.context_dim = 48
    config.unet.dropout = 0.0
    config.unet.default_fs = 12
    config.unet.norm_groups = 8

    config.vae.ch = 16
    config.vae.ch_mult = (1, 2, 4, 6)
    config.vae.num_res_blocks = 1
    config.vae.z_channels = 16
    config.vae.scale_factor = 1.02  # scales the trained VAE's latents to a standard deviation of 1
    config.vae.norm_groups = 4

    config.text_encoder.width = 48
    config.text_encoder.layers = 3
    config.text_encoder.heads = 4
    config.text_encoder.context_length = 32

    config.image_encoder.width = 64
    config.image_encoder.layers = 2
    config.image_encoder.head_width = 16
    config.image_encoder.patch_size = 8
    config.image_encoder.image_size = 64

    config.projector.dim = 64
    config.projector.depth = 2
    config.projector.dim_head = 16
    config.projector.heads = 4
    config.projector.num_queries = 4
    config.projector.embedding_dim = 64
    config.projector.output_dim = 48
    config.projector.other_lengths = "nearest"  # each frame reads its own tokens, also in training

    config.sampling.height = 64
    config.sampling.width = 64
    config.sampling.steps = 8
    config.sampling.eta = 0.0
    config.sampling.guidance_scale = 5.0
    config.sampling.guidance_stop = 0.5  # later steps decide no motion, and have no guided pass
    config.sampling.fps = 12
    config.sampling.vae_frames = 64

    config.data.source = "synthetic:train"
    config.data.validation = "synthetic:validation"
    config.data.max_stride = 1
    config.data.random_frame = False  # a clip starts from its image
    config.data.workers = 1

    config.train.steps = 12_000
    config.train.batch_size = 32
    config.train.accumulation = 1
    config.train.concat = "either"
    config.train.timestep_power = 2.0
    config.train.remat = "none"
    config.train.optimizer = "muon"
    config.train.learning_rate = 5e-3
    config.train.decay = "cosine"
    config.train.warmup_steps = 200
    config.train.beta1 = 0.95
    config.train.beta2 = 0.99
    config.train.clip_norm = 1.0
    config.train.ema_decay = 0.999
    config.train.checkpoint_every = 2000
    config.train.keep_every = 2000  # for curves over training
    config.train.validate_every = 2000
    config.train.validation_clips = 64
    config.train.sample_every = 2000
    return config
