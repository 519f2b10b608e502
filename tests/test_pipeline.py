"""The whole path through the Python interface."""

import json
from typing import Any

import golden_weights
import numpy as np
import pytest
import tiny
from PIL import Image

from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import Clips, ImageToVideo
from dynamicrafter_jax.sampling.settings import SamplingSettings

SIZE = (16, 24)
QUICK: dict[str, Any] = {"steps": 2, "fps": 24}


def picture(seed, size=SIZE):
    """A smooth picture, as an 8-bit photograph would be."""
    values = golden_weights.picture(seed, *size)
    return np.round((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)


def sample(image: Any = None, prompt: Any = "two people dancing", **options: Any) -> Clips:
    image = picture(0) if image is None else image
    return tiny.micro().sample(image, prompt, **(QUICK | options))


def test_two_clips_at_once_are_the_release_s(relative_error):
    golden = tiny.golden("sample_v1024_batch")
    settings = json.loads(str(golden["settings"]))
    clips = tiny.animate("v", base_scale=0.3).sample(
        list(golden["first"]),
        settings["prompts"],
        noise=golden,
        fps=settings["fs"],
        **{
            name: settings[name]
            for name in ("steps", "eta", "guidance_scale", "guidance_rescale", "spacing")
        },
    )
    assert relative_error(clips.latents, golden["latents"]) < 1e-4
    assert relative_error(clips.video, golden["video"]) < 1e-4


def test_a_clip_of_other_length_is_the_release_s(relative_error):
    golden = tiny.golden("sample_v_frames6")
    settings = json.loads(str(golden["settings"]))
    clips = tiny.animate("v").sample(
        golden["first"],
        settings["prompts"][0],
        noise=golden,
        num_frames=6,
        fps=settings["fs"],
        **{
            name: settings[name]
            for name in ("steps", "eta", "guidance_scale", "guidance_rescale", "spacing")
        },
    )
    assert relative_error(clips.latents, golden["latents"]) < 1e-4
    assert relative_error(clips.video, golden["video"]) < 1e-4


def test_a_clip_is_the_same_alone_and_in_a_batch(relative_error):
    pictures = [picture(seed) for seed in (1, 2, 3)]
    prompts = ["a cat", "fireworks display", ""]
    batch = sample(image=pictures, prompt=prompts).latents
    assert not np.allclose(batch[0], batch[1])
    for i in (0, 2):
        alone = sample(image=pictures[i], prompt=prompts[i], first_index=i).latents
        assert relative_error(alone[0], batch[i]) < 1e-5


def test_samples_of_one_prompt_differ_and_follow_their_index(relative_error):
    three = sample(num_samples=3).latents
    assert not np.allclose(three[0], three[1]) and not np.allclose(three[1], three[2])
    assert relative_error(sample(first_index=1, num_samples=3).latents[:2], three[1:]) < 1e-5
    assert not np.allclose(sample(num_samples=3, seed=1).latents, three)


def test_no_setting_that_is_traced_recompiles():
    sampler = tiny.micro().sampler
    programs = (sampler._encode, sampler._start, sampler._denoise, sampler._decode)
    sample()
    before = [len(program._compiled) for program in programs]
    results = [
        sample(**changed).latents
        for changed in (
            {"steps": 3},
            {"eta": 0.0},
            {"guidance_scale": 3.0},
            {"guidance_rescale": 0.1},
            {"fps": 5},
            {"seed": 5},
            {"spacing": "uniform"},
            {"prompt": "a dog"},
            {"negative_prompt": "blurry"},
        )
    ]
    after = [len(program._compiled) for program in programs]
    assert before == after
    results.append(sample().latents)
    for i, one in enumerate(results):
        assert all(not np.array_equal(one, other) for other in results[:i]), i


def test_passes_one_after_another_are_the_passes_at_once(relative_error):
    at_once = sample(image_guidance_scale=2.0).latents
    in_turn = sample(image_guidance_scale=2.0, sequential_guidance=True).latents
    assert relative_error(in_turn, at_once) < 1e-5


def test_progress_is_reported_and_changes_nothing():
    told = []
    watched = sample(progress=lambda *report: told.append(report)).latents
    assert np.array_equal(watched, sample().latents)
    assert [report for report in told if report[0] == "denoise"] == [
        ("denoise", 1, 2),
        ("denoise", 2, 2),
    ]
    assert {"compile", "decode"} < {stage for stage, _, _ in told}


def test_interpolation_and_looping_condition_both_ends():
    free = sample().latents
    ends = sample(end_image=picture(7)).latents
    loop = sample(loop=True)
    assert not np.allclose(free, ends) and not np.allclose(ends, loop.latents)
    same_ends = sample(end_image=picture(0))
    assert np.array_equal(same_ends.latents, loop.latents)
    assert loop.video.shape[1] == 3 and loop.frames().shape[1] == 2
    assert same_ends.frames().shape[1] == 3


def test_a_letterboxed_picture_is_sampled_in_its_borders_and_shown_alone():
    square, wide = picture(4, (16, 16)), picture(5, (32, 96))
    quarter = np.asarray(Image.fromarray(wide).resize((24, 8), Image.Resampling.BICUBIC))
    for image, resized, margins, shown in (
        (square, square, ((0, 0), (4, 4), (0, 0)), np.s_[..., 4:20, :]),
        (wide, quarter, ((4, 4), (0, 0), (0, 0)), np.s_[..., 4:12, :, :]),
    ):
        framed = resized.astype(np.float32) / np.float32(127.5) - np.float32(1)
        expected = sample(image=np.pad(framed, margins, mode="edge"))
        clips = sample(image=image, fit="letterbox")
        assert np.array_equal(clips.latents, expected.latents)
        assert np.array_equal(clips.video, expected.video[shown])
        assert clips.frames().shape == (1, 3, *resized.shape)
        assert not np.allclose(clips.latents[0], sample(image=image).latents[0])


def test_the_end_of_a_letterboxed_clip_is_of_the_same_aspect():
    first, last = picture(4, (16, 16)), picture(5, (32, 32))
    ends = sample(image=first, end_image=last, fit="letterbox")
    loop = sample(image=first, loop=True, fit="letterbox")
    assert ends.frames().shape == (1, 3, 16, 16, 3) and loop.frames().shape == (1, 2, 16, 16, 3)
    assert not np.allclose(ends.latents, loop.latents)
    for options in ({"end_image": picture(0)}, {"image": [first, picture(0)]}):
        with pytest.raises(UserError, match="16 x 16 and 24 x 16 pixels"):
            sample(**{"image": first, "fit": "letterbox"} | options)


def test_a_model_converted_before_there_was_a_choice_crops():
    config = tiny.micro().config.copy_and_resolve_references()
    del config.sampling.fit
    assert SamplingSettings.from_config(config.sampling).fit == "crop"
    assert SamplingSettings.from_config(config.sampling, fit="letterbox").fit == "letterbox"
    del config.sampling.steps
    with pytest.raises(UserError, match="the config's sampling section lacks steps"):
        SamplingSettings.from_config(config.sampling)


@pytest.mark.parametrize("steps", [7, 14, 25])
def test_steps_that_are_nan_in_the_release_are_finite(steps):
    clips = sample(steps=steps, eta=1.0)
    assert np.all(np.isfinite(clips.latents)) and np.all(np.isfinite(clips.video))


def test_image_guidance_of_one_runs(relative_error):
    """The release crashes here. With both scales 1 the three passes add up to the conditional."""
    unguided = sample(guidance_scale=1.0).latents
    two_scales = sample(guidance_scale=1.0, image_guidance_scale=1.0).latents
    assert relative_error(two_scales, unguided) < 1e-5


def test_sides_that_are_no_multiples_are_padded_inside_and_cropped_back():
    clips = sample(image=picture(3, (17, 21)), height=17, width=21)
    assert clips.video.shape == (1, 3, 17, 21, 3)
    assert clips.latents.shape == (1, 3, 9, 11, 4)  # 18x22 pixels: multiples of 2
    assert np.all(np.isfinite(clips.video))


def test_a_single_frame_runs():
    clips = sample(num_frames=1)
    assert clips.frames().shape == (1, 1, *SIZE, 3)


def test_calling_gives_one_video_or_as_many_as_images():
    animate = tiny.micro()
    one = animate(picture(0), "a cat", **QUICK)
    assert one.shape == (3, *SIZE, 3) and one.dtype == np.uint8
    assert animate([picture(0)], "a cat", **QUICK).shape == (1, 3, *SIZE, 3)
    assert np.array_equal(animate([picture(0)], "a cat", **QUICK)[0], one)
    assert animate(picture(0), "a cat", num_samples=3, **QUICK).shape == (3, 3, *SIZE, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_frames_that_are_not_finite_are_no_black_video(value):
    video = np.zeros((1, 2, 4, 4, 3), np.float32)
    video[0, 1, 2, 3, 0] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        Clips(np.zeros((1, 2, 1, 1, 4), np.float32), video, loop=False).frames()


def test_bfloat16_is_finite_and_near(relative_error):
    config = tiny.micro().config.copy_and_resolve_references()
    config.precision.update(dtype="bfloat16", matmul="default")
    rough = ImageToVideo(config, tiny.micro().params)
    options: dict[str, Any] = QUICK | {"guidance_scale": 1.0}
    clips = rough.sample(picture(0), "two people dancing", **options)
    exact = sample(guidance_scale=1.0)
    assert clips.latents.dtype == np.float32 and clips.video.dtype == np.float32
    assert 0 < relative_error(clips.latents, exact.latents) < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "sampling.steps is 0: choose from 1 to 1000"),
        ({"steps": 1001}, "sampling.steps is 1001"),
        ({"eta": 1.5}, "sampling.eta is 1.5"),
        ({"guidance_rescale": 2.0}, "sampling.guidance_rescale is 2.0"),
        ({"guidance_scale": float("nan")}, "sampling.guidance_scale is not a finite number"),
        ({"seed": -1}, "sampling.seed is -1"),
        ({"seed": 2**32}, "choose one below 2\\^32"),
        ({"spacing": "random"}, "sampling.spacing is 'random'"),
        ({"height": 4}, "sampling.height is 4: give at least 8"),
        ({"fit": "stretch"}, "sampling.fit is 'stretch': choose from crop, letterbox"),
        ({"image": picture(0, (16, 100)), "fit": "letterbox"}, "100 x 16 pixels is too narrow"),
        ({"end_image": []}, "1 images but 0 end images"),
        ({"steps": 2.5}, "sampling.steps is 2.5: a whole number is needed"),
        ({"eta": "high"}, "sampling.eta is 'high': a number is needed"),
        ({"step": 5}, "unknown sampling setting step"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"loop": True, "end_image": picture(1)}, "a loop ends as it began"),
        ({"loop": True, "num_frames": 1}, "num_frames of at least 2"),
        ({"prompt": ["a", "b"]}, "1 images but 2 prompts"),
        ({"image": []}, "no image to animate"),
        ({"noise": {}}, "the noise has no array 'posterior_noise'"),
    ],
)
def test_what_cannot_be_done_says_why(options, message):
    with pytest.raises(UserError, match=message):
        sample(**options)


def test_noise_of_the_wrong_shape_or_not_finite_is_refused():
    latents = (3, 8, 12, 4)
    noise = {
        "posterior_noise": np.zeros(latents),
        "x_T": np.zeros((1, *latents)),
        "step_noise": np.zeros((5, 1, *latents)),
    }
    with pytest.raises(UserError, match=r"step_noise has shape \(5, 1, 3, 8, 12, 4\), but .* 7 st"):
        sample(noise=noise, steps=7)
    with pytest.raises(UserError, match="x_T is of type int64"):
        sample(noise=noise | {"x_T": np.zeros((1, *latents), np.int64)}, steps=5)
    with pytest.raises(UserError, match="x_T holds NaN"):
        sample(noise=noise | {"x_T": np.full((1, *latents), np.nan)}, steps=5)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("diffusion", "parameterization", "eps", "does not work with rescale_betas_zero_snr"),
        ("precision", "dtype", "float64", "precision.dtype is 'float64'"),
        ("mesh", "data", 99, "mesh.data=99 needs 99 devices, but there are 8"),
    ],
)
def test_configs_that_cannot_work_are_refused(section, field, value, message):
    config = tiny.config("v")
    config[section][field] = value
    with pytest.raises(UserError, match=message):
        ImageToVideo(config, {})


def test_every_config_that_ships_describes_networks():
    for name in ("i2v_256", "i2v_512", "i2v_1024", "interp_512", "demo"):
        assert load_config(name).name == name
        networks_of(load_config(name))
