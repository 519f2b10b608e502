"""The page: what happens when users press something on it."""

import html
from collections.abc import Iterable
from typing import Any

import gradio as gr

from dynamicrafter_jax.app import controls
from dynamicrafter_jax.app.layout import Buttons, Inputs, Outputs, lay_out
from dynamicrafter_jax.app.progress import Stopped
from dynamicrafter_jax.app.request import check_picture, check_request
from dynamicrafter_jax.app.studio import Result, Studio
from dynamicrafter_jax.errors import UserError

SHOWN_RESULTS = 24
"""How many of a user's newest videos are kept."""

# What needs no answer from the server runs in the browser.
_ROLL = f"() => Math.floor(Math.random() * {controls.MAX_SEED + 1})"
_LOOK = "() => document.getElementById('video').scrollIntoView({block: 'nearest'})"
# The clipboard API works only for local and https pages; elsewhere the old way still works.
_COPY = """(text) => {
  const old = () => {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).catch(old); else old();
}"""

# gradio replaces a parameter that has this default by the object to report progress to.
_PROGRESS = gr.Progress()
_HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Values come as they were sent: gradio's own preprocessing would decode a picture before its size
# is checked, and would report errors in its own words.
_RAW: dict[str, Any] = {"preprocess": False}
_ONE_AT_A_TIME: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
}


def build_page(studio: Studio, *, max_upload: int) -> gr.Blocks:
    """Returns the page.

    Args:
        studio: Makes the videos.
        max_upload: Limit on a picture in bytes, for display.

    Raises:
        UserError: The first model can't be loaded.
    """

    def leave(request: gr.Request) -> None:
        studio.stop(_session(request))

    first = studio.catalogue.names[0]
    own, presets = studio.defaults(first), studio.presets(first)
    with gr.Blocks(title="DynamiCrafter", analytics_enabled=False, fill_width=True) as blocks:
        inputs, outputs, buttons = lay_out(studio.catalogue, own, presets, max_upload)
        _connect_making(studio, inputs, outputs, buttons)
        _connect_history(studio, outputs)
        _connect_inputs(studio, inputs, buttons)
        buttons.copy.click(None, outputs.command, None, js=_COPY, api_visibility="private")
        blocks.unload(leave)
    return blocks


def _connect_making(studio: Studio, inputs: Inputs, outputs: Outputs, buttons: Buttons) -> None:
    """Connects the buttons that generate and stop."""
    names = {component: name for name, component in inputs.named.items()}

    def make(
        values: dict[Any, Any], request: gr.Request, progress: gr.Progress = _PROGRESS
    ) -> dict[Any, Any]:
        history = values.pop(outputs.history)
        given = {names[component]: value for component, value in values.items()}
        for picture in ("image", "end_image"):
            given[picture] = _path_of(given[picture])

        def report(done: float, words: str) -> None:
            progress(done, desc=words)

        try:
            made = studio.generate(_session(request), check_request(given), report)
        except Stopped:
            return {outputs.status: _hint("Stopped.")}
        except UserError as error:
            raise _shown(error) from error
        kept, gone = _keep([*reversed(made), *history])
        studio.forget(gone)
        return _show(outputs, kept, 0)

    def end(request: gr.Request) -> str:
        return _hint("Stopped." if studio.stop(_session(request)) else "Nothing was running.")

    started = [buttons.generate.click, inputs.prompt.submit]
    gr.on(started, None, None, None, js=_LOOK, api_visibility="private")
    run = gr.on(
        started,
        make,
        {*names, outputs.history},
        list(outputs),
        show_progress_on=outputs.video,
        trigger_mode="once",
        **_RAW,
        **_ONE_AT_A_TIME,
    )
    buttons.stop.click(end, None, outputs.status, cancels=[run], queue=False, **_HIDDEN)


def _connect_history(studio: Studio, outputs: Outputs) -> None:
    """Connects the gallery of earlier results."""

    def choose(event: gr.SelectData, history: list[Result]) -> dict[Any, Any]:
        index = event.index
        if not isinstance(index, int) or not 0 <= index < len(history):
            raise _shown(UserError("there is no such result"))
        if not history[index].stored.exists:
            raise _shown(UserError("this result is no longer kept: generate it again"))
        return _show(outputs, history, index)

    outputs.gallery.select(choose, outputs.history, list(outputs), queue=False, **_HIDDEN)
    outputs.history.delete_callback = studio.forget


def _connect_inputs(studio: Studio, inputs: Inputs, buttons: Buttons) -> None:
    """Connects the fields that change others."""

    def take(names: Iterable[str], model: str, preset: str = controls.OWN) -> list[Any]:
        try:
            values = controls.defaults(studio.defaults(model, preset))
        except UserError as error:
            raise _shown(error) from error
        return [values[name] for name in names]

    def take_model(model: str) -> list[Any]:
        values = take(inputs.settings, model)
        return [*values, gr.Radio(list(studio.presets(model)), value=controls.OWN)]

    inputs.model.change(
        take_model,
        inputs.model,
        [*inputs.settings.values(), inputs.preset],
        show_progress_on=inputs.model,
        **_RAW,
        **_ONE_AT_A_TIME,
    )
    chosen = {name: field for name, field in inputs.settings.items() if name != "seed"}
    inputs.preset.input(
        lambda model, preset: take(chosen, model, preset),
        [inputs.model, inputs.preset],
        list(chosen.values()),
        show_progress_on=inputs.preset,
        **_RAW,
        **_ONE_AT_A_TIME,
    )
    inputs.mode.change(
        lambda mode: gr.Image(visible=mode == controls.INTERPOLATION),
        inputs.mode,
        inputs.end_image,
        queue=False,
        **_HIDDEN,
    )
    for picture in (inputs.image, inputs.end_image):
        picture.upload(
            _check_upload,
            picture,
            picture,
            concurrency_id="pictures",
            concurrency_limit=2,
            **_RAW,
            **_HIDDEN,
        )
    seed = inputs.settings["seed"]
    buttons.dice.click(None, None, seed, js=_ROLL, api_visibility="private")


def _check_upload(picture: Any) -> Any:
    """Checks a picture at once; warns about one that can't be used, and removes it."""
    path = _path_of(picture)
    if path is not None:
        try:
            check_picture(path)
        except UserError as error:
            gr.Warning(html.escape(str(error)), title="This picture can't be used")
            return None
    return gr.skip()


def _show(outputs: Outputs, history: list[Result], index: int) -> dict[Any, Any]:
    """Returns the values of the outputs for a chosen result."""
    chosen = history[index]
    return {
        outputs.video: str(chosen.stored.video),
        outputs.status: "",
        outputs.session: gr.Column(visible=True),
        outputs.command: chosen.command,
        outputs.details: _table(chosen.details),
        outputs.gallery: [(str(one.stored.poster), one.title) for one in history],
        outputs.history: history,
    }


def _keep(history: list[Result]) -> tuple[list[Result], list[Result]]:
    """Splits results into those to keep, and those that are too many."""
    there = [result for result in history if result.stored.exists]
    return there[:SHOWN_RESULTS], there[SHOWN_RESULTS:]


def _path_of(picture: Any) -> str | None:
    """Returns the path of an uploaded file, from gradio's description of it."""
    return picture["path"] if isinstance(picture, dict) else None


def _session(request: gr.Request) -> str:
    return request.session_hash or ""


def _shown(error: UserError) -> gr.Error:
    """Returns an error for the user to see, without a traceback on the server."""
    words = " ".join(str(error).split())
    return gr.Error(html.escape(words), title="This does not work", print_exception=False)


def _hint(words: str) -> str:
    return f"<p class='hint'>{html.escape(words)}</p>"


def _table(details: dict[str, str]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in details.items()
    )
    return f"<table class='made'>{rows}</table>"
