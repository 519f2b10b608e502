"""Image and prompt to video, for a model and its parameters."""

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
        config: The full config; `config.sampling` holds the defaults of a call.
        sampler: The compiled stages.
        models: The five networks.
        params: Their parameters, by the names of `models`.
    """

    def __init__(self, config: ConfigDict, params: PyTree) -> None:
        """Binds parameters to the networks of a config.

        Args:
            config: As in `configs/`.
            params: A dict of parameter trees by section, as `from_pretrained` reads them.

        Raises:
            UserError: If the config is refused.
        """
        sampler = Sampler(config, sharding.mesh_of(config))
        self._bind(sampler, sampler.place(params))

    def _bind(self, sampler: Sampler, params: PyTree) -> None:
        self.config = sampler.config
        self.sampler = sampler
        self.models = sampler.models
        self.params = params

    @classmethod
    def from_pretrained(
        cls,
        source: str | epath.Path,
        *,
        config: ConfigDict | str | None = None,
        towers: str | epath.Path | None = None,
    ) -> "ImageToVideo":
        """Loads a model by its name, or from where it is.

        Args:
            source: "demo" for that of the package; a converted directory; a release file
                (`.ckpt`, `.pt`, `.safetensors`); or a repository of the Hugging Face Hub, as
                "Doubiiu/DynamiCrafter_512" or "owner/name@revision", which is downloaded into its
                cache. What exists as a path is one; a directory named demo is "./demo".
            config: A config, its name or its file. A file needs one, since the 512, 1024 and
                interpolation releases hold the same tensors, and so does a repository of such a
                file that is not its authors'. The others know their own.
            towers: For files without the frozen VAE and towers: another source to take those
                from.

        Raises:
            UserError: If the source is missing, broken, or does not fit the config, or can't be
                downloaded.
        """
        loaded = None if config is None else load_config(config)
        animate = cls.__new__(cls)
        animate._bind(*load_sampler(source, config=loaded, towers=towers))
        return animate

    @classmethod
    def from_random(cls, config: ConfigDict | str, seed: int = 0) -> "ImageToVideo":
        """Builds an untrained model: it runs the whole path and makes noise."""
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
            prompt: What happens; empty for the image alone. One for all, or a list.
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
            prompt: One prompt for all, or a list.
            end_image: Where each clip ends (interpolation).
            loop: Whether each clip ends where it began.
            num_samples: Clips of each image; they follow one another in the result.
            first_index: Global index of the first clip. A clip's randomness comes from the
                seed and its index alone, so it is the same in any batch.
            noise: Draws of another run to replay, as `noise.replay` takes them.
            progress: Told about compilation and steps.
            **settings: Any of `SamplingSettings`, in place of the config's.

        Raises:
            UserError: If an input or a setting can't be used; the message says why.
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
