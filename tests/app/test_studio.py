import copy
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image

from dynamicrafter_jax.app import controls
from dynamicrafter_jax.app.catalogue import ModelCatalogue
from dynamicrafter_jax.app.progress import Stopped
from dynamicrafter_jax.app.request import Request
from dynamicrafter_jax.app.results import ResultStore
from dynamicrafter_jax.app.studio import Studio
from dynamicrafter_jax.media import read_video
from dynamicrafter_jax.pipeline import ImageToVideo


@pytest.fixture
def studio(tmp_path) -> Studio:
    catalogue = ModelCatalogue(["demo"], load=lambda name: tiny.micro())
    return Studio(catalogue, ResultStore(tmp_path / "results", 10))


@pytest.fixture
def request_(tmp_path, studio) -> Request:
    picture = tmp_path / "cat.png"
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8)).save(picture)
    settings = controls.check_settings(controls.defaults(studio.defaults("demo")))
    settings |= {"steps": 2, "guidance_scale": 1.0, "video_fps": 5}
    return Request("demo", controls.IMAGE_TO_VIDEO, picture, None, "a cat", 1, settings)


def quiet(share: float, words: str) -> None:
    pass


def with_(request: Request, **changes) -> Request:
    settings = {**request.settings, **changes.pop("settings", {})}
    return Request(**{**request.__dict__, **changes, "settings": settings})


def test_a_request_becomes_a_video_and_its_story(studio, request_):
    shown = []
    (result,) = studio.generate("me", request_, lambda share, words: shown.append(words))
    frames, fps = read_video(result.stored.video)
    assert frames.shape == (3, 16, 24, 3) and fps == 5
    assert result.title == "a cat, seed 0" and result.stored.video.name == "a-cat-seed-0.mp4"
    assert result.details["Steps"] == "2" and result.details["Picture"] == "cat.png"
    assert result.details["Video"] == "3 frames of 24 x 16"
    assert "--prompt=a cat" in result.command and str(request_.image.parent) not in result.command
    assert "step 2 of 2" in shown and shown[0] == "loading the model"


def with_presets(folder: Path, **presets: dict[str, int]) -> Studio:
    """A studio whose only model, `mine`, takes 50 steps and has these presets."""
    config = copy.deepcopy(tiny.micro().config)
    config.sampling.steps, config.sampling.presets = 50, ConfigDict(presets)
    mine = ImageToVideo(config, tiny.micro().params)
    catalogue = ModelCatalogue(["mine"], load=lambda name: mine)
    return Studio(catalogue, ResultStore(folder / "results", 10))


def test_a_model_without_a_preset_of_its_own_settings_is_offered_them(tmp_path):
    studio = with_presets(tmp_path, draft={"steps": 3})
    assert studio.presets("mine") == (controls.OWN, "draft")
    assert studio.defaults("mine").steps == 50
    assert studio.defaults("mine", "draft").steps == 3


def test_a_preset_may_bear_the_name_of_a_models_own_settings(tmp_path):
    studio = with_presets(tmp_path, draft={"steps": 3}, **{controls.OWN: {"steps": 60}})
    assert studio.presets("mine") == (controls.OWN, "draft")
    assert studio.defaults("mine").steps == 60


def test_several_videos_are_a_result_each(studio, request_):
    results = studio.generate("me", with_(request_, num_samples=2), quiet)
    assert [result.title for result in results] == ["a cat, seed 0 #1", "a cat, seed 0 #2"]
    first, second = (read_video(result.stored.video)[0] for result in results)
    assert not np.array_equal(first, second)
    assert results[0].details["Sample"] == "1 of 2"


def test_a_loop_leaves_out_what_repeats(studio, request_):
    (result,) = studio.generate("me", with_(request_, mode=controls.LOOPING), quiet)
    assert read_video(result.stored.video)[0].shape[0] == 2


def test_stopping_ends_between_steps_and_lets_the_next_in(studio, request_):
    steps = []

    def stop_soon(share: float, words: str) -> None:
        steps.append(words)
        if words.startswith("step 2"):
            assert studio.stop("somebody else") is False
            assert studio.stop("me") is True

    with pytest.raises(Stopped):
        studio.generate("me", with_(request_, settings={"steps": 50}), stop_soon)
    assert [words.split(",")[0] for words in steps][-1] == "step 2 of 50"
    assert studio.stop("me") is False  # nothing is left behind
    assert len(studio.generate("me", request_, quiet)) == 1


def test_one_at_a_time_and_who_waits_can_stop_too(studio, request_):
    studio.generate("me", request_, quiet)  # compiled
    entered, leave, ended = threading.Event(), threading.Event(), []

    def hold(share: float, words: str) -> None:
        entered.set()
        assert leave.wait(60)

    def wait() -> None:
        try:
            studio.generate("you", request_, lambda share, words: ended.append(words))
        except Stopped:
            ended.append("stopped")

    first = threading.Thread(target=studio.generate, args=("me", request_, hold))
    first.start()
    assert entered.wait(60)
    second = threading.Thread(target=wait)
    second.start()
    deadline = time.monotonic() + 60
    while not studio.stop("you") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == []  # it has not begun while the first is at work
    leave.set()
    first.join(60)
    second.join(60)
    assert ended == ["stopped"]


def test_who_leaves_takes_his_videos_along(studio, request_):
    results = studio.generate("me", request_, quiet)
    studio.forget(results)
    assert not results[0].stored.exists and not Path(results[0].stored.video.parent).exists()
