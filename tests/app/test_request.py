from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from dynamicrafter_jax.app import controls
from dynamicrafter_jax.app.request import check_picture, check_request
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.sampling.settings import SamplingSettings


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "a picture.png"
    Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)).save(path)
    return path


@pytest.fixture
def values(picture) -> dict:
    own = SamplingSettings.from_config(tiny.config("v").sampling)
    return {
        "model": "demo",
        "mode": controls.IMAGE_TO_VIDEO,
        "image": str(picture),
        "end_image": None,
        "prompt": "a cat",
        "num_samples": 1,
        **controls.defaults(own),
    }


def test_a_request_is_what_the_sampler_takes(values, picture):
    request = check_request(values | {"num_samples": 2, "seed": 5})
    assert request.image == picture and request.prompt == "a cat"
    options = request.options
    assert options["num_samples"] == 2 and options["seed"] == 5
    assert options["end_image"] is None and options["loop"] is False


def test_modes_decide_how_a_video_ends(values, picture):
    both = values | {"end_image": str(picture)}
    assert check_request(both).options["end_image"] is None
    ending = check_request(both | {"mode": controls.INTERPOLATION}).options
    assert ending["end_image"] == str(picture) and not ending["loop"]
    looping = check_request(both | {"mode": controls.LOOPING}).options
    assert looping["end_image"] is None and looping["loop"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": None}, "choose a picture first"),
        ({"mode": controls.INTERPOLATION}, "needs a picture to end at"),
        ({"mode": "Backwards"}, "choose a mode from Image to video, Interpolation, Looping"),
        ({"mode": ["Looping"]}, "choose a mode from"),
        ({"model": None}, "choose a model"),
        ({"model": {"a": 1}}, "choose a model"),
        ({"prompt": 5}, "Prompt is 5: give text"),
        ({"num_samples": 5}, "Videos is 5: give 1 to 4"),
        ({"steps": 1000}, "Steps is 1000: give 1 to 100"),
        ({"seed": -1}, "Seed is -1"),
        ({"seed": 2**32}, "Seed is 4294967296"),
        ({"guidance_scale": "7"}, "Guidance scale is '7': give a number"),
    ],
)
def test_what_is_wrong_is_said(values, change, message):
    with pytest.raises(UserError, match=message):
        check_request(values | change)


def test_nothing_sent_is_an_error_too():
    with pytest.raises(UserError, match="choose a mode from"):
        check_request({})


def test_pictures_are_whole_and_not_too_large(tmp_path, picture):
    assert check_picture(picture) == picture
    short = tmp_path / "short.png"
    short.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UserError, match=r"^short\.png is truncated or damaged"):
        check_picture(short)
    words = tmp_path / "words.png"
    words.write_text("no picture at all")
    with pytest.raises(UserError, match=r"^words\.png is not a picture of a known format"):
        check_picture(words)
    with pytest.raises(UserError, match=r"^gone\.png does not exist"):
        check_picture(tmp_path / "gone.png")


def test_a_huge_picture_is_refused_by_its_header(tmp_path):
    # 40000 x 40000 pixels of one bit are a small file; as RGB they are 4.8 GB.
    bomb = tmp_path / "bomb.png"
    Image.new("1", (40_000, 40_000)).save(bomb)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(UserError, match=r"^bomb\.png.* is larger than 100 million pixels"):
        check_picture(bomb)
