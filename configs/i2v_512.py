r"""DynamiCrafter 512: image-to-video at 320x512, 16 frames; the config the others start from.

    python sample.py --config=configs/i2v_512.py --checkpoint=model.ckpt \
        --image=picture.png --prompt="a man surfing" --output=out.mp4

gives the release's video of the same noise (see docs/parity.md).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the hyperparameters of the 512 release."""
    config = ConfigDict()
    config.name = "i2v_512"

    config.unet = ConfigDict()
    config.unet.in_channels = 8
    config.unet.out_channels = 4
    config.unet.model_channels = 320
    config.unet.channel_mult = (1, 2, 4, 4)
    config.unet.num_res_blocks = 2
    config.unet.attention_resolutions = (1, 2, 4)
    config.unet.num_head_channels = 64
    config.unet.context_dim = 1024
    config.unet.temporal_length = 16
    config.unet.dropout = 0.1
    config.unet.image_cross_attention_scale_learnable = False
    config.unet.default_fs = 24
    config.unet.norm_groups = 32

    config.vae = ConfigDict()
    config.vae.ch = 128
    config.vae.ch_mult = (1, 2, 4, 4)
    config.vae.num_res_blocks = 2
    config.vae.z_channels = 4
    config.vae.scale_factor = 0.18215
    config.vae.norm_groups = 32

    config.text_encoder = ConfigDict()
    config.text_encoder.width = 1024
    config.text_encoder.layers = 24
    config.text_encoder.heads = 16
    config.text_encoder.context_length = 77
    config.text_encoder.vocab_size = 49408

    config.image_encoder = ConfigDict()
    config.image_encoder.width = 1280
    config.image_encoder.layers = 32
    config.image_encoder.head_width = 80
    config.image_encoder.patch_size = 14
    config.image_encoder.image_size = 224

    config.projector = ConfigDict()
    config.projector.dim = 1024
    config.projector.depth = 4
    config.projector.dim_head = 64
    config.projector.heads = 12
    config.projector.num_queries = 16
    config.projector.embedding_dim = 1280
    config.projector.output_dim = 1024
    config.projector.ff_mult = 4
    config.projector.video_length = 16
    config.projector.other_lengths = "all"  # or nearest: what frames of other clips read

    config.diffusion = ConfigDict()
    config.diffusion.timesteps = 1000
    config.diffusion.linear_start = 0.00085
    config.diffusion.linear_end = 0.012
    config.diffusion.parameterization = "v"
    config.diffusion.rescale_betas_zero_snr = True
    config.diffusion.use_dynamic_rescale = True
    config.diffusion.base_scale = 0.7

    config.sampling = ConfigDict()
    config.sampling.height = 320
    config.sampling.width = 512
    config.sampling.num_frames = 16
    config.sampling.steps = 50
    config.sampling.eta = 1.0
    config.sampling.guidance_scale = 7.5
    config.sampling.image_guidance_scale = placeholder(float)  # unset: one-scale guidance
    config.sampling.guidance_rescale = 0.7
    config.sampling.spacing = "uniform_trailing"
    config.sampling.negative_prompt = ""
    config.sampling.fps = 24  # the model's `fs` condition
    config.sampling.video_fps = 8.0  # the written file's
    config.sampling.seed = 0
    config.sampling.sequential_guidance = False  # one guided pass at a time: less memory
    config.sampling.vae_frames = 4  # frames that each device encodes or decodes at once
    config.sampling.fit = "crop"  # pictures fill height x width; "letterbox": they stay whole

    config.data = ConfigDict()
    config.data.source = placeholder(str)  # a .csv, a folder, a cache's, tfds:NAME, synthetic:train
    config.data.videos = placeholder(str)  # what a .csv's paths start from; unset: videos/ beside
    config.data.split = "train"  # of a TFDS data set
    config.data.validation = placeholder(str)  # held-out clips, like source
    config.data.min_stride = 1  # source frames from one frame of a clip to the next
    config.data.max_stride = 6
    config.data.fs = "fps"  # the model is told this of a clip: "fps" or "stride"
    config.data.condition_dropout = 0.05  # p: 2p of the prompts, 2p of the images are dropped
    config.data.random_frame = True  # the conditioning image is any frame; False: the first
    config.data.frames = placeholder(int)  # of a clip that are read, at random; unset: all
    config.data.workers = 4  # processes that read videos, on each host; 0: none
    config.data.prefetch = 2  # batches that each keeps ready

    config.train = ConfigDict()
    config.train.seed = 0
    config.train.steps = 100_000
    config.train.batch_size = 64  # clips an optimizer step, over all devices
    config.train.accumulation = 2  # parts of a batch, one after another
    config.train.trainable = "all"
    config.train.objective = "denoise"  # "reconstruct" trains the VAE, "align" the towers
    config.train.concat = "frame"
    config.train.ends_share = 0.25  # under "either": of clips, those that both ends are given of
    config.train.timestep_power = 1.0  # above 1: more of the noisy timesteps
    config.train.kl_weight = 1e-6  # of "reconstruct"
    config.train.equivariance = 0.0  # of "reconstruct": of clips, those that are scaled and turned
    config.train.temperature = 0.07  # of "align"
    config.train.recall_weight = 1.0  # of what "align" asks of the text tower alone
    config.train.remat = "blocks"
    config.train.optimizer = "adamw"  # "muon" for a model that starts from nothing
    config.train.learning_rate = 1e-5
    config.train.decay = "constant"
    config.train.warmup_steps = 0
    config.train.beta1 = 0.9
    config.train.beta2 = 0.999
    config.train.epsilon = 1e-8
    config.train.weight_decay = 0.01
    config.train.clip_norm = 0.5
    config.train.ema_decay = 0.0  # 0: no averaged parameters
    config.train.log_every = 50
    config.train.checkpoint_every = 1000
    config.train.keep_last = 2
    config.train.keep_every = placeholder(int)  # unset: only the newest are kept
    config.train.validate_every = 1000
    config.train.validation_clips = 64
    config.train.sample_every = 1000  # steps between sample videos; 0: none
    config.train.sample_images = ()  # paths; none: frames of validation clips, or of the first
    config.train.sample_prompts = ()  # one for each of sample_images
    config.train.sample_clips = 4  # clips that are sampled where there are no sample_images
    config.train.profile_start = placeholder(int)  # unset: no profiler trace
    config.train.profile_steps = 3

    config.init = ConfigDict()  # what training starts from; all unset: random parameters
    config.init.checkpoint = placeholder(str)  # a release file or a converted model
    config.init.videocrafter = placeholder(str)  # VideoCrafter2, text-to-video
    config.init.clip = placeholder(str)  # OpenCLIP ViT-H/14, for both towers
    config.init.vae = placeholder(str)  # Stable Diffusion's VAE
    config.init.towers = placeholder(str)  # where frozen networks come from, if absent

    config.mesh = ConfigDict()
    config.mesh.data = 1  # devices that a batch is split over; -1: all that the others leave
    config.mesh.fsdp = 1  # those that parameters and moments are split over too
    config.mesh.sequence = 1  # those that a clip is split over
    config.mesh.tensor = 1  # those that attention heads and hidden units are split over

    config.precision = ConfigDict()
    config.precision.dtype = "float32"  # computed in
    config.precision.param_dtype = "float32"
    config.precision.matmul = "highest"  # TPU and GPU round float32 products otherwise

    return config
