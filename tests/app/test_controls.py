import dataclasses

import pytest
import tiny

from dynamicrafter_jax.app import controls
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.sampling.settings import SamplingSettings

# What is not asked for: the size is the model's, and two settings only trade memory for time.
NOT_SHOWN = {"height", "width", "num_frames", "sequential_guidance", "vae_frames", "distilled"}
BY_NAME = {control.name: control for control in (controls.SEED, *controls.CONTROLS)}


def own() -> dict:
    return controls.defaults(SamplingSettings.from_config(tiny.config("v").sampling))


def test_every_setting_has_a_control_with_help():
    fields = {field.name for field in dataclasses.fields(SamplingSettings)}
    assert set(BY_NAME) == fields - NOT_SHOWN
    assert all(control.help.endswith(".") and control.label for control in BY_NAME.values())


def test_a_models_own_settings_pass_and_mean_the_same():
    config = tiny.config("v").sampling
    checked = controls.check_settings(own())
    assert SamplingSettings.from_config(config, **checked) == SamplingSettings.from_config(config)


@pytest.mark.parametrize("kind", ["v", "eps"])
def test_defaults_lie_within_their_limits(kind):
    values = controls.defaults(SamplingSettings.from_config(tiny.config(kind).sampling))
    controls.check_settings(values)


@pytest.mark.parametrize("name", [c.name for c in BY_NAME.values() if c.is_number])
def test_numbers_keep_to_their_limits(name):
    control = BY_NAME[name]
    assert control.check(control.high) == control.high
    if not control.optional:
        assert control.check(control.low) == control.low
    for wrong in (control.low - 1, control.high + 1, float("nan"), float("inf"), 10**400):
        with pytest.raises(UserError, match=f"{control.label} is .*: give"):
            control.check(wrong)
    for wrong in ("5", True, [5], {"a": 5}):
        with pytest.raises(UserError, match="give a number"):
            control.check(wrong)


def test_whole_numbers_are_whole():
    steps = BY_NAME["steps"].check(10.0)
    assert steps == 10 and isinstance(steps, int)
    with pytest.raises(UserError, match=r"Steps is 2\.5: give a whole number"):
        BY_NAME["steps"].check(2.5)


def test_no_image_guidance_is_zero_on_the_page_and_none_in_the_sampler():
    assert own()["image_guidance_scale"] == 0
    for unset in (0, 0.0, None):
        assert BY_NAME["image_guidance_scale"].check(unset) is None
    assert BY_NAME["image_guidance_scale"].check(1.5) == 1.5
    with pytest.raises(UserError, match="Steps is None"):
        BY_NAME["steps"].check(None)


def test_texts_are_of_the_choices_and_not_endless():
    assert BY_NAME["fit"].check("letterbox") == "letterbox"
    with pytest.raises(UserError, match="Fit is 'stretch': give crop or letterbox"):
        BY_NAME["fit"].check("stretch")
    with pytest.raises(UserError, match="give text"):
        BY_NAME["negative_prompt"].check(["blurry"])
    assert BY_NAME["negative_prompt"].check(None) == ""
    assert len(controls.PROMPT.check("x" * controls.MAX_PROMPT)) == controls.MAX_PROMPT
    with pytest.raises(UserError, match="Prompt has 1001 characters"):
        controls.PROMPT.check("x" * (controls.MAX_PROMPT + 1))


def test_messages_stay_short_whatever_was_sent():
    with pytest.raises(UserError) as caught:
        BY_NAME["steps"].check(["x" * 100_000])
    assert len(str(caught.value)) < 100
