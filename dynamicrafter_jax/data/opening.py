"""The samples that a config names."""

import dataclasses

from ml_collections import ConfigDict

from dynamicrafter_jax.data.cache.clips import CachedExamples
from dynamicrafter_jax.data.cache.format import check_networks, is_cache
from dynamicrafter_jax.data.clips import VideoExamples
from dynamicrafter_jax.data.draws import ClipSettings
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.synthetic import SyntheticExamples
from dynamicrafter_jax.errors import UserError

_SYNTHETIC = "synthetic:"


def open_examples(
    config: ConfigDict, source: str | None, seed: int, *, training: bool = True
) -> VideoExamples | CachedExamples | SyntheticExamples:
    """Opens the samples of a source.

    Args:
        config: The model's config; it says how clips are cut.
        source: See `sources.open_source`; or the folder of a latent cache; or `synthetic:train`,
            `synthetic:validation` or `synthetic:test`, clips that are drawn. If a cache needs its
            videos and they have moved since, `data.videos` is the folder they are in now.
        seed: Seed of the run.
        training: Whether conditions are dropped, and frames left out, as the config says.

    Raises:
        UserError: There is no source, or it can't be used.
    """
    if not source:
        raise UserError(
            "no videos to train on: set data.source to a .csv, a folder, tfds:NAME, a cache or "
            "synthetic:train"
        )
    settings = ClipSettings.from_config(config)
    if not training:
        settings = dataclasses.replace(settings, condition_dropout=0.0, frames=None)
    if source.startswith(_SYNTHETIC):
        return SyntheticExamples(
            settings,
            seed,
            source.removeprefix(_SYNTHETIC),
            motions=config.data.motions if training else (),
            motions_share=float(config.data.motions_share) if training else 0.0,
        )
    if training and config.data.motions:
        raise UserError(
            f"data.motions is for drawn clips alone, and data.source is {source}: set it to ()"
        )
    if is_cache(source):
        examples = CachedExamples(source, settings, seed, videos=config.data.videos)
        check_networks(source, examples.recipe, config)
        return examples
    videos = open_source(source, videos=config.data.videos, split=config.data.split)
    return VideoExamples(videos, settings, seed)
