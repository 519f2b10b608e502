r"""DynamiCrafter 512: image-to-video at 320x512, 16 frames; the base of all other configs.

    python sample.py --config=configs/i2v_512.py --checkpoint=model.ckpt \
        --image=picture.png --prompt="a man surfing" --output=out.mp4

gives the same video as the release for the same noise (see docs/parity.md).
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
    config.projector.other_lengths = "all"  # or "nearest": what frames of other clips read

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
    config.sampling.solver = "ddim"  # or dpmpp_2m, dpmpp_2m_sde, unipc, euler, euler_ancestral
    config.sampling.steps = 50
    config.sampling.eta = 1.0
    config.sampling.guidance_scale = 7.5
    config.sampling.image_guidance_scale = placeholder(float)  # unset: one-scale guidance
    config.sampling.guidance_rescale = 0.7
    config.sampling.spacing = "uniform_trailing"
    config.sampling.negative_prompt = ""
    config.sampling.fps = 24  # the model's `fs` condition
    config.sampling.video_fps = 8.0  # of the written file
    config.sampling.seed = 0
    config.sampling.sequential_guidance = False  # one guided pass at a time: less memory
    config.sampling.vae_frames = 4  # frames that each device encodes or decodes at once
    config.sampling.fit = "crop"  # pictures fill the frame; "letterbox": they stay whole
    config.sampling.deep_cache_interval = 1  # the whole U-Net runs at one of so many steps
    config.sampling.deep_cache_depth = 1  # outermost blocks that run at the others
    config.sampling.guidance_start = 0.0  # from which share of the run there is guidance
    config.sampling.guidance_stop = 1.0  # to which
    config.sampling.guidance_reuse_interval = 1  # all guided passes run at one of so many steps
    config.sampling.distilled = False  # whether the model takes no guidance
    config.sampling.presets = ConfigDict()  # what `--preset` replaces of the above
    config.sampling.presets.quality = ConfigDict()
    config.sampling.presets.balanced = ConfigDict({"solver": "unipc", "steps": 25})
    config.sampling.presets.fast = ConfigDict({"solver": "unipc", "steps": 12})

    config.data = ConfigDict()
    config.data.source = placeholder(str)  # a .csv, folder, cache, tfds:NAME, synthetic:train
    config.data.videos = placeholder(str)  # base of a .csv's paths; unset: videos/ next to it
    config.data.split = "train"  # for a TFDS data set
    config.data.validation = placeholder(str)  # held-out clips, like source
    config.data.min_stride = 1  # from frame to frame of a clip, in source frames
    config.data.max_stride = 6
    config.data.fs = "fps"  # what `fs` tells the model about a clip: "fps" or "stride"
    config.data.condition_dropout = 0.05  # p: a share 2p of prompts and 2p of images is dropped
    config.data.random_frame = True  # the conditioning image is any frame; False: the first
    config.data.frames = placeholder(int)  # frames to read from a clip, at random; unset: all
    config.data.motions = ()  # of drawn clips, to be shown more often
    config.data.motions_share = 0.0  # of drawn clips: one of `motions` is all that happens
    config.data.workers = 4  # processes that read videos, on each host; 0: none
    config.data.prefetch = 2  # batches that each of them keeps ready

    config.train = ConfigDict()
    config.train.seed = 0
    config.train.steps = 100_000
    config.train.batch_size = 64  # clips per optimizer step, over all devices
    config.train.accumulation = 2  # parts of a batch, one after another
    config.train.trainable = "all"
    config.train.objective = "denoise"  # or "distill", "reconstruct" (the VAE), "align" (towers)
    config.train.concat = "frame"
    config.train.ends_share = 0.25  # for "either": share of clips whose two ends are given
    config.train.timestep_power = 1.0  # above 1: more of the noisy timesteps
    config.train.kl_weight = 1e-6  # for "reconstruct"
    config.train.equivariance = 0.0  # for "reconstruct": share of clips that are scaled and turned
    config.train.temperature = 0.07  # for "align"
    config.train.recall_weight = 1.0  # for "align": weight of recalling a caption's words
    config.train.remat = "blocks"
    config.train.optimizer = "adamw"  # "muon" for a model trained from scratch
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
    config.train.sample_images = ()  # paths; empty: frames of clips, of validation ones if any
    config.train.sample_prompts = ()  # one for each of sample_images
    config.train.sample_clips = 4  # clips to sample if there are no sample_images
    config.train.profile_start = placeholder(int)  # unset: no profiler trace
    config.train.profile_steps = 3
    config.train.distill_steps = 4  # for "distill": steps that the model will sample in
    config.train.distill_substeps = 2  # steps of its teacher in each of them
    config.train.distill_guidance_scale = 7.5  # the teacher's; 1: it was distilled itself
    config.train.distill_guidance_rescale = 0.7
    config.train.distill_guidance_stop = 1.0  # to which share of its run

    config.init = ConfigDict()  # what training starts from; all unset: random parameters
    config.init.checkpoint = placeholder(str)  # a release file or a converted model
    config.init.videocrafter = placeholder(str)  # VideoCrafter2, text-to-video
    config.init.clip = placeholder(str)  # OpenCLIP ViT-H/14, for both towers
    config.init.vae = placeholder(str)  # Stable Diffusion's VAE
    config.init.towers = placeholder(str)  # source of frozen networks that all others lack

    config.mesh = ConfigDict()
    config.mesh.data = 1  # devices that split batches; -1: all that the others leave
    config.mesh.fsdp = 1  # devices that split batches, and also parameters and moments
    config.mesh.sequence = 1  # devices that split each clip
    config.mesh.tensor = 1  # devices that split attention heads and hidden units

    config.precision = ConfigDict()
    config.precision.dtype = "float32"  # type of computations
    config.precision.param_dtype = "float32"
    config.precision.matmul = "highest"  # by default, TPU and GPU round float32 products

    return config
