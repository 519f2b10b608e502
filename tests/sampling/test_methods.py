"""Solvers and caches as settings of whole runs."""

import numpy as np
import pytest
import tiny

from dynamicrafter_jax.diffusion.solvers import SOLVERS, named_solver
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.settings import SamplingSettings, preset_names

PICTURES = [
    np.random.default_rng(seed).uniform(-1, 1, (16, 24, 3)).astype(np.float32) for seed in range(4)
]
PROMPTS = ["a cat", "fireworks", "", "a dog"]
ALL_CACHES = {"deep_cache_interval": 2, "guidance_reuse_interval": 2, "guidance_stop": 0.8}

# Each solver, and each cache in one of them: solvers see nothing of a cache but the prediction.
METHODS = {
    "ddim": {},
    "dpmpp_2m": {"deep_cache_interval": 2},
    "dpmpp_2m_sde": {"deep_cache_interval": 2, "image_guidance_scale": 2.0},
    "unipc": ALL_CACHES,
    "euler": {"guidance_reuse_interval": 2, "sequential_guidance": True},
    "euler_ancestral": {"guidance_start": 0.3},
}


def sample(model: ImageToVideo, rows: slice, **settings) -> np.ndarray:
    own = model.config.sampling
    size = {"height": own.height, "width": own.width}
    clips = model.sample(
        PICTURES[rows],
        PROMPTS[rows],
        first_index=rows.start,
        **{"steps": 6, "guidance_scale": 3.0} | size | settings,
    )
    return clips.latents


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_clip_is_the_same_alone_and_in_a_batch_on_eight_devices(relative_error, solver):
    settings = {"solver": solver, **METHODS[solver]}
    config = tiny.micro().config.copy_and_resolve_references()
    config.mesh.data = 8
    split = ImageToVideo(config, tiny.micro().params)
    batch = sample(split, slice(0, 4), **settings)
    assert np.isfinite(batch).all() and not np.allclose(batch[0], batch[1])
    alone = sample(tiny.micro(), slice(2, 3), **settings)
    assert relative_error(alone[0], batch[2]) < 2e-5


def test_settings_that_are_only_numbers_share_a_program():
    model = tiny.micro()
    cached = {"solver": "unipc", "deep_cache_interval": 2}
    first = sample(model, slice(0, 1), **cached)
    denoise = model.sampler._denoise
    before = len(denoise._compiled)
    changed = (
        {"deep_cache_interval": 3},
        {"steps": 5},
        {"spacing": "karras"},
    )
    ends = [sample(model, slice(0, 1), **cached | settings) for settings in changed]
    assert len(denoise._compiled) == before
    assert len({end.tobytes() for end in (first, *ends)}) == 1 + len(ends)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "heun"}, "sampling.solver is 'heun': choose from ddim, dpmpp_2m"),
        ({"deep_cache_interval": 7}, r"deep_cache_interval is 7: choose from 1 .* to 6"),
        ({"deep_cache_interval": 2, "deep_cache_depth": 99}, "deep_cache_depth is 99: choose from"),
        ({"guidance_reuse_interval": 0}, "guidance_reuse_interval is 0: choose from 1"),
        (
            {"guidance_start": 0.5, "guidance_stop": 0.5},
            "start is 0.5 and guidance_stop 0.5",
        ),
        ({"guidance_start": 0.95}, "none of the 6 steps is from .*guidance_start=0.95"),
        ({"distilled": True}, "distilled from a guided one, and takes no guidance: leave"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    model = tiny.micro()
    with pytest.raises(UserError, match=message):
        model.sample(PICTURES[0], "", **{"steps": 6, "guidance_scale": 3.0} | settings)


def test_presets_are_settings_that_others_replace():
    section = tiny.micro().config.sampling.copy_and_resolve_references()
    section.steps = 50
    section.presets = {"quality": {}, "fast": {"solver": "unipc", "steps": 5}}
    assert preset_names(section) == ("quality", "fast")
    own = SamplingSettings.from_config(section)
    assert SamplingSettings.from_config(section, preset="quality") == own
    fast = SamplingSettings.from_config(section, preset="fast", steps=7)
    assert (fast.solver, fast.steps, fast.eta) == ("unipc", 7, own.eta)
    with pytest.raises(UserError, match="preset 'fats' is unknown: choose from quality, fast"):
        SamplingSettings.from_config(section, preset="fats")


@pytest.mark.parametrize("name", ["quality", "balanced", "fast"])
def test_presets_of_the_configs_suit_their_models(name):
    """Configs of older models have none, and take those of `i2v_512`."""
    model = tiny.micro()
    settings = SamplingSettings.from_config(model.config.sampling, preset=name, guidance_scale=3.0)
    method, tables = stages.make_steps(model.models, model.sampler.schedule, settings)
    assert len(tables.coefficients.timestep) == settings.steps
    assert method.solver == named_solver(settings.solver, model.sampler.schedule.parameterization)
