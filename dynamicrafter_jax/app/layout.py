"""The layout of the page, and its style."""

from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import gradio as gr
from gradio import themes
from gradio.components import Component

from dynamicrafter_jax.app import controls
from dynamicrafter_jax.app.catalogue import ModelCatalogue
from dynamicrafter_jax.app.controls import Control
from dynamicrafter_jax.sampling.settings import SamplingSettings

EXAMPLES = (
    ("rocket.jpg", controls.IMAGE_TO_VIDEO, "the camera zooms in"),
    ("coffee.jpg", controls.IMAGE_TO_VIDEO, "the camera pans left"),
    ("rocket.jpg", controls.LOOPING, "the camera pans right"),
)
"""Photographs in the package, with a mode and a prompt for each."""

_MASTHEAD = """
<header id="masthead">
  <h1>DynamiCrafter</h1>
  <p>A picture and a few words become a short video.</p>
</header>
"""


class Inputs(NamedTuple):
    """The fields that users fill in, by the names that `check_request` takes.

    `preset` alone is no part of a request: it fills in `settings`.
    """

    model: gr.Dropdown
    preset: gr.Radio
    mode: gr.Radio
    image: gr.Image
    end_image: gr.Image
    prompt: gr.Textbox
    num_samples: gr.Slider
    settings: dict[str, Component]

    @property
    def named(self) -> dict[str, Component]:
        """All components of a request by name."""
        fields = self._asdict()
        del fields["preset"]
        return {**fields.pop("settings"), **fields}


class Outputs(NamedTuple):
    """The components that show a result.

    Attributes:
        video: The video.
        status: A line of text.
        session: Everything that is visible only when there is a result.
        gallery: A picture of each result.
        command: The command for `sample.py`.
        details: How the video was made.
        history: The user's results, as `Result`s.
    """

    video: gr.Video
    status: gr.HTML
    session: gr.Column
    gallery: gr.Gallery
    command: gr.Textbox
    details: gr.HTML
    history: gr.State


class Buttons(NamedTuple):
    """The buttons."""

    generate: gr.Button
    stop: gr.Button
    dice: gr.Button
    copy: gr.Button


def theme() -> themes.Base:
    """Returns the colours and fonts, all served from this server."""
    weights = (400, 700)  # the weights for which gradio has the whole alphabet
    return themes.Default(
        primary_hue=themes.colors.teal,
        secondary_hue=themes.colors.teal,
        neutral_hue=themes.colors.slate,
        radius_size=themes.sizes.radius_lg,
        font=[themes.LocalFont("IBM Plex Sans", weights), "system-ui", "sans-serif"],
        font_mono=[themes.LocalFont("IBM Plex Mono", weights), "ui-monospace", "monospace"],
    )


def css() -> str:
    """Returns the style sheet."""
    return (resources.files("dynamicrafter_jax.app") / "page.css").read_text()


def lay_out(
    catalogue: ModelCatalogue, own: SamplingSettings, presets: Sequence[str], max_upload: int
) -> tuple[Inputs, Outputs, Buttons]:
    """Adds all components to the page that is being built.

    Args:
        catalogue: The models to choose from.
        own: Settings of the first model.
        presets: Names of presets.
        max_upload: Limit on a picture in bytes, for display.
    """
    gr.HTML(_MASTHEAD, elem_id="top")
    with gr.Row(equal_height=False, elem_id="columns"):
        with gr.Column(min_width=340, elem_id="inputs"):
            model, mode = _choices(catalogue)
            image, end_image = _pictures(max_upload)
            prompt = gr.Textbox(
                label=controls.PROMPT.label,
                placeholder="What happens, such as: the camera zooms in",
                max_length=controls.MAX_PROMPT,
                elem_id="prompt",
            )
            with gr.Row(elem_id="draws", equal_height=True):
                seed, dice, num_samples = _draws(own)
            with gr.Row(elem_id="go"):
                generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
            status = gr.HTML("", elem_id="status")
            preset, settings = _settings(own, presets)
            _examples(image, mode, prompt)
        with gr.Column(min_width=340, elem_id="results"):
            video = _video()
            with gr.Column(visible=False) as session:
                gallery = _gallery()
                command, copy = _command()
                with gr.Accordion("How it was made", open=False, elem_id="made"):
                    details = gr.HTML(elem_id="details")
    return (
        Inputs(
            model, preset, mode, image, end_image, prompt, num_samples, {"seed": seed, **settings}
        ),
        Outputs(video, status, session, gallery, command, details, gr.State([])),
        Buttons(generate, stop, dice, copy),
    )


def _choices(catalogue: ModelCatalogue) -> tuple[gr.Dropdown, gr.Radio]:
    with gr.Row(elem_id="choices"):
        model = gr.Dropdown(
            catalogue.names,
            value=catalogue.names[0],
            label="Model",
            info="Or type a path, or owner/name on the Hub." if catalogue.allow_any else None,
            allow_custom_value=catalogue.allow_any,
            elem_id="model",
            min_width=140,
            scale=1,
        )
        mode = gr.Radio(
            list(controls.MODES),
            value=controls.IMAGE_TO_VIDEO,
            label="Mode",
            elem_id="mode",
            min_width=330,
            scale=3,
        )
    return model, mode


def _pictures(max_upload: int) -> tuple[gr.Image, gr.Image]:
    common: dict[str, Any] = {
        "type": "filepath",
        "sources": ["upload", "clipboard"],
        "height": 270,
        "buttons": [],
        "min_width": 200,
    }
    with gr.Row(elem_id="pictures"):
        image = gr.Image(label="Picture", elem_id="image", **common)
        end_image = gr.Image(label="End picture", elem_id="end_image", visible=False, **common)
    image.placeholder = f"Drop a picture here\n- up to {max_upload / 1e6:.3g} MB -\nor click"
    return image, end_image


def _draws(own: SamplingSettings) -> tuple[gr.Number, gr.Button, gr.Slider]:
    seed = gr.Number(
        own.seed,
        label=controls.SEED.label,
        info=controls.SEED.help,
        precision=0,
        minimum=0,
        maximum=controls.MAX_SEED,
        elem_id="seed",
        min_width=150,
        scale=1,
    )
    dice = gr.Button("Roll the dice", elem_id="dice", scale=0, min_width=46)
    num_samples = gr.Slider(
        controls.NUM_SAMPLES.low,
        controls.NUM_SAMPLES.high,
        1,
        step=1,
        label=controls.NUM_SAMPLES.label,
        info=controls.NUM_SAMPLES.help,
        buttons=[],
        elem_id="num_samples",
        min_width=150,
        scale=1,
    )
    return seed, dice, num_samples


def _settings(
    own: SamplingSettings, presets: Sequence[str]
) -> tuple[gr.Radio, dict[str, Component]]:
    values = controls.defaults(own)
    preset = gr.Radio(
        list(presets),
        value=controls.OWN,
        label="Preset",
        info="Fills in the settings below: fewer passes of the model, and a little less quality.",
        elem_id="preset",
    )
    with gr.Accordion("Settings", open=False, elem_id="settings"), gr.Row():
        return preset, {
            control.name: _component(control, values[control.name]) for control in controls.CONTROLS
        }


def _component(control: Control, value: Any) -> Component:
    """Returns the component for a setting."""
    common: dict[str, Any] = {
        "label": control.label,
        "info": control.help,
        "elem_id": control.name,
        "min_width": 240,
    }
    if control.choices:
        return gr.Radio(list(control.choices), value=value, **common)
    if not control.is_number:
        return gr.Textbox(value, max_length=controls.MAX_PROMPT, **common)
    return gr.Slider(control.low, control.high, value, step=control.step, buttons=[], **common)


def _examples(image: gr.Image, mode: gr.Radio, prompt: gr.Textbox) -> None:
    assets = resources.files("dynamicrafter_jax") / "assets"
    gr.Examples(
        [[str(assets / name), mode_of, words] for name, mode_of, words in EXAMPLES],
        inputs=[image, mode, prompt],
        label="Examples",
        elem_id="examples",
        cache_examples=False,
        api_visibility="private",
    )


def _video() -> gr.Video:
    return gr.Video(
        label="Video",
        height=430,
        autoplay=True,
        loop=True,
        interactive=False,
        buttons=["download"],
        elem_id="video",
    )


def _gallery() -> gr.Gallery:
    return gr.Gallery(
        label="This session",
        columns=4,
        fit_columns=False,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="gallery",
    )


def _command() -> tuple[gr.Textbox, gr.Button]:
    with gr.Group(elem_id="again"):
        command = gr.Textbox(
            label="The same frames from the command line",
            info="Run it in the picture's folder.",
            lines=2,
            max_lines=6,
            interactive=False,
            elem_id="command",
        )
        copy = gr.Button("Copy command", size="sm", elem_id="copy")
    return command, copy
