"""What is compared at equal cost does cost the same."""

from typing import Any

import benchmark_modules
import pytest
import tiny

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo

passes, quality_cost = benchmark_modules.load("passes", "quality_cost")


def model(**sampling: Any) -> ImageToVideo:
    """A model with other settings of its own."""
    micro = tiny.micro()
    config = micro.config.copy_and_resolve_references()
    config.sampling.update(sampling)
    return ImageToVideo(config, micro.params)


@pytest.mark.parametrize(("stop", "steps", "count"), [(1.0, 4, 8), (0.5, 4, 6), (0.5, 12, 18)])
def test_ddim_takes_as_many_passes(stop, steps, count):
    animate = model(guidance_stop=stop)
    assert passes.unet_passes(animate, {"steps": steps}) == count
    for budget in (count, count + 0.5):
        assert quality_cost.steps_within(animate, budget) == steps
    assert quality_cost.steps_within(animate, count - 0.5) == steps - 1


def test_each_distilled_model_is_held_against_ddim_in_its_steps():
    student = model(steps=2)
    ways, pairs = quality_cost.compared(model(), [student])
    assert ways["distilled 2"].animate is student
    assert ways["ddim 2"].animate is not student
    assert ways["ddim 2"].settings["steps"] == 2
    assert {("distilled 2", "ddim 2"), ("distilled 2", "ddim 50")} <= set(pairs)
    assert {name for pair in pairs for name in pair} == set(ways)
    with pytest.raises(UserError, match="two models of --distilled sample in 2 steps"):
        quality_cost.compared(model(), [student, model(steps=2)])


@pytest.mark.parametrize(
    ("settings", "repeatable"),
    [
        ({"solver": "ddim", "eta": 0.0}, True),
        ({"solver": "ddim", "eta": 1.0}, False),
        ({"solver": "unipc", "eta": 1.0}, True),
        ({"solver": "dpmpp_2m_sde", "eta": 1.0}, False),
        ({"solver": "dpmpp_2m_sde", "eta": 0.0}, True),
    ],
)
def test_a_clip_with_fresh_noise_is_not_held_against_the_references(settings, repeatable):
    assert quality_cost.Way(tiny.micro(), settings).repeatable == repeatable
