"""What is compared at equal cost does cost the same."""

import benchmark_modules
import pytest
import tiny

passes, quality_cost = benchmark_modules.load("passes", "quality_cost")


@pytest.mark.parametrize(("stop", "steps", "count"), [(1.0, 4, 8), (0.5, 4, 6), (0.5, 12, 18)])
def test_ddim_takes_as_many_passes(stop, steps, count):
    animate = tiny.micro()
    animate.config.sampling.guidance_stop = stop
    assert passes.unet_passes(animate, {"steps": steps}) == count
    for budget in (count, count + 0.5):
        assert quality_cost.steps_within(animate, budget) == steps
    assert quality_cost.steps_within(animate, count - 0.5) == steps - 1
