"""A web page to play with a model.

    python -m dynamicrafter_jax.app

opens it at http://127.0.0.1:7860, for this machine only, with the packaged model. See docs/app.md.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dynamicrafter_jax import cli

# isort: split
from absl import flags

from dynamicrafter_jax.app.catalogue import ModelCatalogue
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights.names import DEMO

_EXTRA = ("fastapi", "gradio", "uvicorn")


class Flags(NamedTuple):
    """The flags of the command line, which other entry points must not inherit."""

    checkpoint: flags.FlagHolder[list[str]]
    settings: flags.FlagHolder[list[str]]
    allow_any_model: flags.FlagHolder[bool]
    loaded_models: flags.FlagHolder[int]
    host: flags.FlagHolder[str]
    port: flags.FlagHolder[int]
    workdir: flags.FlagHolder[str | None]
    max_upload: flags.FlagHolder[float]
    keep_results: flags.FlagHolder[int]
    queue_size: flags.FlagHolder[int]


def define_flags() -> Flags:
    """Defines the flags."""
    return Flags(
        checkpoint=flags.DEFINE_multi_string(
            "checkpoint",
            [],
            "A model to offer besides demo: a converted directory, a Hub id, or a file with its "
            "config, such as model.ckpt,config=i2v_512. May be given several times.",
        ),
        settings=cli.define_settings(),
        allow_any_model=flags.DEFINE_bool(
            "allow_any_model", False, "Let users name any model that this machine can read."
        ),
        loaded_models=flags.DEFINE_integer("loaded_models", 1, "Models kept in memory.", 1),
        host=flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all."),
        port=flags.DEFINE_integer("port", 7860, "Port to listen on; 0 for any.", 0, 65535),
        workdir=flags.DEFINE_string(
            "workdir", None, "Folder for all files; by default a new one, removed at the end."
        ),
        max_upload=flags.DEFINE_float("max_upload", 20.0, "Limit on a picture, in MB.", 0.01),
        keep_results=flags.DEFINE_integer("keep_results", 100, "Videos that are kept.", 1),
        queue_size=flags.DEFINE_integer("queue_size", 20, "Requests that may wait.", 1),
    )


def main(given: Flags, _: Sequence[str]) -> None:
    """Serves the page until Ctrl-C."""
    try:
        from dynamicrafter_jax.app import serving
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise UserError('the page needs gradio: pip install "dynamicrafter-jax[app]"') from error
    catalogue = ModelCatalogue(
        [DEMO, *given.checkpoint.value],
        overrides=given.settings.value,
        allow_any=given.allow_any_model.value,
        capacity=given.loaded_models.value,
    )
    site = serving.Site(
        host=given.host.value,
        port=given.port.value,
        workdir=None if given.workdir.value is None else Path(given.workdir.value),
        max_upload=round(given.max_upload.value * 1e6),
        keep_results=given.keep_results.value,
        queue_size=given.queue_size.value,
    )
    serving.serve(
        catalogue,
        site,
        lambda address: print(f"the page is at {address}; press Ctrl-C to stop", flush=True),
    )


if __name__ == "__main__":
    cli.run(functools.partial(main, define_flags()))
