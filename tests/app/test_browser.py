"""The page as people use it, in a real browser."""

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app.servers import ROOT, Server, running
from PIL import Image

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.sampling.settings import preset_of

pytestmark = pytest.mark.slow

PAUSE = 0.4  # seconds in each step
ASSETS = ROOT / "dynamicrafter_jax" / "assets"
PATIENCE = 120_000  # milliseconds; what is waited for takes a few seconds on an idle machine


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("page"), pause=PAUSE) as server:
        yield server


class Person:
    """Somebody at the page, in a browser of their own."""

    def __init__(self, chromium: Any, server: Server, **options: Any) -> None:
        self.context = chromium.new_context(**options)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(host_of(request.url)))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.address)
        self.page.wait_for_selector("#generate")

    def upload(self, path: Path, field: str = "#image") -> None:
        self.page.set_input_files(f"{field} input[type=file]", str(path))

    def prepare(self, picture: Path, prompt: str, *, steps: int, seed: int = 0) -> None:
        """Fills in what a video needs."""
        self.upload(picture)
        self.page.wait_for_selector("#image img")
        self.page.fill("#prompt textarea, #prompt input", prompt)
        self.page.fill("#seed input", str(seed))
        if not self.page.is_visible("#steps"):
            self.page.click("#settings > button")
        self.page.fill("#steps input[type=number]", str(steps))
        self.page.press("#steps input[type=number]", "Tab")

    def generate(self) -> None:
        self.page.click("#generate")

    def wait_for_results(self, count: int) -> None:
        self.page.wait_for_function(
            f"document.querySelectorAll('#gallery .thumbnail-item').length == {count}"
        )

    def wait_for_words(self, selector: str, words: str) -> None:
        self.page.wait_for_function(
            "([selector, words]) => document.querySelector(selector)?.innerText.includes(words)",
            arg=[selector, words],
        )

    def video(self) -> dict[str, Any]:
        """Plays the video to its end, and returns what the browser knows of it."""
        self.page.wait_for_function("document.querySelector('#video video')?.readyState >= 3")
        return self.page.evaluate(
            """async () => {
              const video = document.querySelector('#video video');
              video.loop = false;
              video.muted = true;
              video.currentTime = 0;
              const ended = new Promise(done => video.addEventListener('ended', done));
              await video.play();
              await ended;
              return {
                duration: video.duration, time: video.currentTime, source: video.currentSrc,
                width: video.videoWidth, height: video.videoHeight, error: video.error,
              };
            }"""
        )

    @property
    def command(self) -> list[str]:
        return shlex.split(self.page.input_value("#command textarea"))

    def leave(self) -> None:
        self.context.close()


def host_of(url: str) -> str:
    return re.sub(r"^(\w+:(?://[^/]*)?).*", r"\1", url, flags=re.S)


@pytest.fixture
def person(chromium, server) -> Iterator[Person]:
    person = Person(chromium, server)
    yield person
    person.leave()


def test_upload_generate_play_and_choose_again(server, person):
    picture = ASSETS / "coffee.jpg"
    person.prepare(picture, "it's a <b>cup</b> & more", steps=3, seed=5)
    person.generate()
    person.wait_for_results(1)
    first = person.video()
    assert first["duration"] == pytest.approx(3 / 8, abs=0.01)
    assert first["time"] == pytest.approx(first["duration"], abs=0.1)
    assert (first["width"], first["height"], first["error"]) == (24, 16, None)
    assert {"--image=coffee.jpg", "--seed=5", "--steps=3"} <= set(person.command)
    assert "--prompt=it's a <b>cup</b> & more" in person.command

    person.page.click("#made > button")
    person.wait_for_words("#details", "it's a <b>cup</b> & more")
    person.wait_for_words("#details", "3 frames of 24 x 16")

    person.page.click("#dice")
    person.page.wait_for_function("document.querySelector('#seed input').value != '5'")
    seed = person.page.input_value("#seed input")
    person.generate()
    person.wait_for_results(2)
    assert f"--seed={seed}" in person.command
    second = person.video()
    assert second["source"] != first["source"]

    person.page.click("#gallery .thumbnail-item >> nth=1")  # newest first
    person.page.wait_for_function(
        "source => document.querySelector('#video video').currentSrc == source",
        arg=first["source"],
    )
    assert "--seed=5" in person.command
    person.wait_for_results(2)

    assert person.errors == []
    assert person.hosts <= {server.address, "data:", f"blob:{server.address}", "blob:"}


def test_the_command_is_copied(chromium, server):
    person = Person(chromium, server, permissions=["clipboard-read", "clipboard-write"])
    person.prepare(ASSETS / "rocket.jpg", "up", steps=1)
    person.generate()
    person.wait_for_results(1)
    person.page.click("#copy")
    person.page.wait_for_timeout(300)
    copied = person.page.evaluate("navigator.clipboard.readText()")
    assert shlex.split(copied) == person.command and "--prompt=up" in person.command
    person.leave()


def test_modes_and_examples(person):
    assert not person.page.is_visible("#end_image")
    person.page.click("#examples tbody tr >> nth=2")
    person.page.wait_for_selector("#image img")
    person.page.wait_for_function(
        "document.querySelector('#mode label.selected').innerText.trim() == 'Looping'"
    )
    person.generate()
    person.wait_for_results(1)
    assert "--loop" in person.command and person.video()["duration"] == pytest.approx(
        2 / 8, abs=0.01
    )

    person.page.click("#mode label:has-text('Interpolation')")
    person.page.wait_for_selector("#end_image")
    person.generate()
    person.wait_for_words("body", "interpolation also needs a picture to end at")
    person.upload(ASSETS / "coffee.jpg", "#end_image")
    person.page.wait_for_selector("#end_image img")
    person.generate()
    person.wait_for_results(2)
    assert "--end_image=coffee.jpg" in person.command


def test_a_preset_fills_in_the_settings(person):
    fast = preset_of(load_config("i2v_512").sampling, "fast")
    person.page.fill("#seed input", "7")
    person.page.click("#settings > button")
    person.page.click("#preset label:has-text('fast')")
    person.page.wait_for_function(
        "steps => document.querySelector('#steps input[type=number]').value == steps",
        arg=str(fast["steps"]),
    )
    person.upload(ASSETS / "coffee.jpg")
    person.page.wait_for_selector("#image img")
    person.generate()
    person.wait_for_results(1)
    assert {f"--{name}={value}" for name, value in fast.items()} <= set(person.command)
    assert "--seed=7" in person.command


def test_what_is_no_picture_is_said_at_once(person, tmp_path):
    bad = tmp_path / "not <i>a picture.png"
    bad.write_bytes(b"nothing to see here")
    person.upload(bad)
    person.wait_for_words("body", "is not a picture of a known format")
    person.page.wait_for_selector("#image img", state="detached")
    person.generate()
    person.wait_for_words("body", "choose a picture first")

    bomb = tmp_path / "bomb.png"
    Image.new("1", (40_000, 40_000)).save(bomb)
    person.upload(bomb)
    person.wait_for_words("body", "larger than 100 million pixels")

    large = tmp_path / "large.bmp"
    Image.fromarray(np.zeros((3000, 3000, 3), np.uint8)).save(large)  # 27 MB
    person.upload(large)
    person.wait_for_words("body", "maximum allowed size")
    assert person.page.query_selector("#image img") is None


def test_stopping_frees_the_queue_for_others(chromium, server):
    """Two people at once: one waits and is told so, and both get what is theirs."""
    first, second = Person(chromium, server), Person(chromium, server)
    first.prepare(ASSETS / "rocket.jpg", "of the first", steps=100)
    second.prepare(ASSETS / "coffee.jpg", "of the second", steps=2)
    first.generate()
    first.wait_for_words("#video", "of 100, about")  # steps and the time left
    second.generate()
    second.wait_for_words("#video", "queue: 1/1")
    first.page.click("#stop")
    first.wait_for_words("#status", "Stopped.")
    second.wait_for_results(1)
    assert "--prompt=of the second" in second.command
    assert first.page.query_selector("#gallery .thumbnail-item") is None

    first.page.fill("#steps input[type=number]", "2")
    first.page.press("#steps input[type=number]", "Tab")
    second.page.fill("#prompt textarea, #prompt input", "once more")
    first.generate()
    second.generate()
    first.wait_for_results(1)
    second.wait_for_results(2)
    assert "--prompt=of the first" in first.command
    assert "--prompt=once more" in second.command
    assert first.video()["source"] != second.video()["source"]

    second.page.click("#stop")
    second.wait_for_words("#status", "Nothing was running.")
    first.leave()
    second.leave()


def test_leaving_stops_what_is_being_made(chromium, server):
    leaving, staying = Person(chromium, server), Person(chromium, server)
    leaving.prepare(ASSETS / "rocket.jpg", "", steps=100)
    staying.prepare(ASSETS / "coffee.jpg", "stays", steps=1)
    leaving.generate()
    leaving.wait_for_words("#video", "of 100, about")
    leaving.leave()
    left = time.monotonic()
    staying.generate()
    staying.wait_for_results(1)
    assert time.monotonic() - left < 100 * PAUSE  # what all its steps would have taken
    staying.leave()


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_the_page_fits_its_window(chromium, server, width, height):
    person = Person(chromium, server, viewport={"width": width, "height": height})
    person.prepare(ASSETS / "rocket.jpg", "a long prompt " * 9, steps=1)
    person.generate()
    person.wait_for_results(1)
    person.page.click("#made > button")
    assert person.page.evaluate("document.documentElement.scrollWidth") <= width
    person.leave()
