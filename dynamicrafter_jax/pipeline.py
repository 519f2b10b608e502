"""The pipeline from image and prompt to video, for a model with its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree, UInt8
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.models.layers import init_params
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.noise import KeyedNoise, replay
from dynamicrafter_jax.sampling.sampler import Clips, ImageLike, Progress, Sampler, load_sampler
from dynamicrafter_jax.sampling.settings import SamplingSettings

__all__ = ["Clips", "ImageToVideo", "Progress"]


class ImageToVideo:
    """Animates images.

        animate = ImageToVideo.from_pretrained("model_512")
        video = animate("picture.png", "a man surfing", seed=0)  # uint8 (t, h, w, 3)

    Attributes:
        config: The full config; `config.sampling` holds the defaults for calls.
        sampler: The compiled stages.
        models: The five networks.
        params: Their parameters, by the names in `models`.
    """

    def __init__(self, config: ConfigDict, params: PyTree) -> None:
        """Binds parameters to the networks of a config.

        Args:
            config: A config, as in `configs/`.
            params: A dict of parameter trees by section, as `from_pretrained` reads them.

        Raises:
            UserError: The config is invalid.
        """
        self.config = config
        self.sampler = Sampler(config, sharding.mesh_of(config))
        self.models = self.sampler.models
        self.params = self.sampler.place(params)

    @classmethod
    def from_pretrained(
        cls,
        source: str | epath.Path,
        *,
        config: ConfigDict | str | None = None,
        towers: str | epath.Path | None = None,
    ) -> "ImageToVideo":
        """Loads a model by its name or path.

        Args:
            source: "demo" for the package's own model; a converted directory; a release file
                (`.ckpt`, `.pt`, `.safetensors`); or a repository on the Hugging Face Hub, such as
                "Doubiiu/DynamiCrafter_512" or "owner/name@revision", which is downloaded into the
                Hub's cache. What exists as a path is one; for a directory named demo, write
                "./demo".
            config: A config, or its name or file. A file needs one, since the 512, 1024 and
                interpolation releases hold the same tensors, and so does a repository with such a
                file unless it is the authors'. Other sources determine their config.
            towers: For files without the frozen VAE and towers: another source for those.

        Raises:
            UserError: The source is missing, broken, or does not fit the config, or can't be
                downloaded.
        """
        loaded = None if config is None else load_config(config)
        sampler, params = load_sampler(source, config=loaded, towers=towers)
        return cls(sampler.config, params)

    @classmethod
    def from_random(cls, config: ConfigDict | str, seed: int = 0) -> "ImageToVideo":
        """Builds an untrained model, which runs all stages but generates noise."""
        config = load_config(config)
        params = init_params(abstract_models(networks_of(config)), jax.random.key(seed))
        return cls(config, params)

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        prompt: str | Sequence[str] = "",
        **options: Any,
    ) -> UInt8[np.ndarray, "*n t h w 3"]:
        """Animates an image, or a list of them as one batch.

        Args:
            image: A path, picture or uint8 array (h, w, 3); or a list of them.
            prompt: What happens; empty to use only the image. One for all images, or a list.
            **options: As in `sample`.

        Returns:
            The video (t, h, w, 3); with a list, or `num_samples` above 1, (n, t, h, w, 3).
        """
        frames = self.sample(image, prompt, **options).frames()
        many = isinstance(image, (list, tuple)) or options.get("num_samples", 1) > 1
        return frames if many else frames[0]

    def sample(
        self,
        image: ImageLike | Sequence[ImageLike],
        prompt: str | Sequence[str] = "",
        *,
        end_image: ImageLike | Sequence[ImageLike] | None = None,
        loop: bool = False,
        num_samples: int = 1,
        first_index: int = 0,
        noise: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Clips:
        """Animates images and returns latents and unclipped frames.

        Args:
            image: One image or a list of them.
            prompt: One prompt for all images, or a list.
            end_image: Where each clip ends (interpolation).
            loop: Whether each clip ends where it began.
            num_samples: Clips for each image; they are adjacent in the result.
            first_index: Global index of the first clip. A clip's randomness comes only from the
                seed and its index, so it is the same in any batch.
            noise: Draws of another run to replay, as `noise.replay` takes them.
            progress: Is notified of compilation and steps.
            **settings: Any fields of `SamplingSettings`, instead of the config's.

        Raises:
            UserError: An input or a setting can't be used; the message says why.
        """
        chosen = SamplingSettings.from_config(self.config.sampling, **settings)
        inputs = self.sampler.read(
            image, prompt, chosen, end_image=end_image, loop=loop, num_samples=num_samples
        )
        if noise is None:
            indices = range(first_index, first_index + inputs.count)
            draws = KeyedNoise.from_seed(chosen.seed, indices)
        else:
            steps = self.sampler.num_steps(chosen)
            shape = stages.latent_shape(self.models, chosen)
            draws = replay(dict(noise), inputs.count, steps, shape)
        return self.sampler(self.params, inputs, chosen, draws, progress)
