"""Turns requests into videos, one at a time, and stops them on request."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dynamicrafter_jax.app.catalogue import ModelCatalogue
from dynamicrafter_jax.app.command import sample_command
from dynamicrafter_jax.app.controls import CONTROLS, OWN, SEED
from dynamicrafter_jax.app.progress import Show, Watch, format_seconds
from dynamicrafter_jax.app.request import Request
from dynamicrafter_jax.app.results import ResultStore, Stored
from dynamicrafter_jax.pipeline import ImageToVideo, Progress
from dynamicrafter_jax.sampling.settings import SamplingSettings, preset_names


@dataclass(frozen=True)
class Result:
    """A video, and how it was made.

    Attributes:
        stored: Its files.
        title: A short title.
        details: What it was made from, by label.
        command: The `sample.py` command that makes the same frames.
    """

    stored: Stored
    title: str
    details: dict[str, str]
    command: str


def make_frames(
    animate: ImageToVideo, request: Request, progress: Progress | None = None
) -> UInt8[np.ndarray, "n t h w 3"]:
    """Returns the frames of all videos of a request, the same as from `sample.py`."""
    clips = animate.sample(str(request.image), request.prompt, progress=progress, **request.options)
    return clips.frames()


class Studio:
    """Generates the videos of all users of a page.

    Attributes:
        catalogue: The models.
    """

    def __init__(self, catalogue: ModelCatalogue, results: ResultStore) -> None:
        """Takes the models, and the store for their videos."""
        self.catalogue = catalogue
        self._results = results
        self._turn = threading.Lock()
        self._running: dict[threading.Event, str] = {}

    def presets(self, model: str) -> tuple[str, ...]:
        """Returns the names of a model's presets, `controls.OWN` among them.

        Raises:
            UserError: As in `ModelCatalogue.get`.
        """
        names = preset_names(self.catalogue.get(model).config.sampling)
        return names if OWN in names else (OWN, *names)

    def defaults(self, model: str, preset: str = OWN) -> SamplingSettings:
        """Returns the settings of a model's preset, loading the model if necessary.

        Raises:
            UserError: There is no such preset, or as in `ModelCatalogue.get`.
        """
        section = self.catalogue.get(model).config.sampling
        own = preset == OWN and preset not in preset_names(section)
        return SamplingSettings.from_config(section, preset=None if own else preset)

    def generate(self, session: str, request: Request, show: Show) -> list[Result]:
        """Makes the videos of a request, after all earlier requests.

        Args:
            session: The user's session, by which `stop` finds the request.
            request: What to make.
            show: Receives progress updates.

        Raises:
            UserError: As in `ModelCatalogue.get` and `ImageToVideo.sample`.
            Stopped: The request was stopped.
        """
        with self._stoppable(session) as stopped, self._turn:
            watch = Watch(show, stopped)
            watch.check()
            show(0.0, "loading the model")
            animate = self.catalogue.get(request.model)
            started = time.monotonic()
            videos = make_frames(animate, request, watch)
            seconds = time.monotonic() - started
            spent = f"{format_seconds(seconds)}, {watch.seconds_per_step:.2f} s per step"
            command = sample_command(request, animate.config, self.catalogue.overrides)
            fps = request.settings["video_fps"]
            made = []
            for index, frames in enumerate(videos):
                title = _title(request, index)
                stored = self._results.add(frames, fps, f"{title} {index}" if index else title)
                details = _details(request, frames, index)
                details["Time"] = spent
                made.append(Result(stored, title, details, command))
            return made

    def stop(self, session: str) -> bool:
        """Stops what a session is making, between two steps; returns whether there was anything."""
        events = [event for event, who in list(self._running.items()) if who == session]
        for event in events:
            event.set()
        return bool(events)

    def forget(self, results: list[Result]) -> None:
        """Removes videos that a user no longer needs."""
        for result in results:
            self._results.remove(result.stored)

    @contextmanager
    def _stoppable(self, session: str) -> Iterator[threading.Event]:
        event = threading.Event()
        self._running[event] = session
        try:
            yield event
        finally:
            del self._running[event]


def _title(request: Request, index: int) -> str:
    words = request.prompt or request.image.stem
    number = f" #{index + 1}" if request.num_samples > 1 else ""
    return f"{words}, seed {request.settings['seed']}{number}"


def _details(request: Request, frames: UInt8[np.ndarray, "t h w 3"], index: int) -> dict[str, str]:
    t, h, w, _ = frames.shape
    details = {"Model": request.model, "Mode": request.mode, "Picture": request.image.name}
    if request.end_image is not None:
        details["End picture"] = request.end_image.name
    details["Prompt"] = request.prompt or "none"
    details["Video"] = f"{t} frames of {w} x {h}"
    if request.num_samples > 1:
        details["Sample"] = f"{index + 1} of {request.num_samples}"
    for control in (SEED, *CONTROLS):
        value = request.settings[control.name]
        details[control.label] = "none" if value in (None, "") else str(value)
    return details
