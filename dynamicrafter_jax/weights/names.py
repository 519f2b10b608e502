"""Names of models: the package's demo, a repository on the Hub, or a path.

Text is interpreted by the first rule that applies:

1. "demo" is the package's own model, if it is installed; for a folder of that name, write "./demo".
2. What exists on this machine is a path.
3. "owner/name" and "owner/name@revision" are repositories on the Hub.
4. Anything else is a path.

A `Path` is always a path.
"""

from importlib import resources

from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax.config import config_names, load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.files import as_path
from dynamicrafter_jax.weights.converted import read_config
from dynamicrafter_jax.weights.hub import RELEASES, Repository

DEMO = "demo"
"""The name of the package's own model, and of its config."""

_DEMO_FILE = "demo.safetensors"


def find_model(source: epath.PathLike) -> epath.Path:
    """Returns the file or folder of a model, downloading it if necessary.

    Args:
        source: Its name or path; a path need not exist.

    Raises:
        UserError: It is the name of a config, or this installation has no demo model; or as in
            `hub.Repository.download`.
    """
    if source == DEMO:
        return _demo_file()
    repository = _repository(source)
    if repository is not None:
        return epath.Path(repository.download())
    place = as_path(source)
    if isinstance(source, str) and source in config_names() and not place.exists():
        raise UserError(_where_weights_are(source))
    return place


def known_config(source: epath.PathLike) -> str | None:
    """Returns the name of a model's config, if the model's name determines it; otherwise None."""
    if source == DEMO:
        return DEMO
    repository = _repository(source)
    return None if repository is None else repository.config


def config_for(source: epath.PathLike, given: ConfigDict | None) -> ConfigDict:
    """Returns the given config or, without one, that of the model `source`.

    Raises:
        UserError: `source` does not exist, or is a file, which does not say which model it is; or
            as in `find_model` and `converted.read_description`.
    """
    if given is not None:
        return given
    if (name := known_config(source)) is not None:
        return load_config(name)
    place = find_model(source)
    if not place.exists():
        raise UserError(f"{place} does not exist: check the path")
    if not place.is_dir():
        raise UserError(
            "no --config: a file does not say which model it is; give its config, such as i2v_1024"
        )
    return read_config(place)


def _repository(source: epath.PathLike) -> Repository | None:
    repository = Repository.parse(source) if isinstance(source, str) else None
    return None if repository is None or as_path(source).exists() else repository


def _where_weights_are(config: str) -> str:
    """Says what to give instead of the name of a config."""
    for repository, known in RELEASES.items():
        if known == config:
            return (
                f"{config} is the name of a config, and its weights are in {repository}: give "
                f"that name, as in --checkpoint={repository} or from_pretrained({repository!r}), "
                f"or the path of its model.ckpt with the config"
            )
    return (
        f"{config} is the name of a config, which has no weights: train a model with python "
        f"train.py --config={config} --workdir=DIRECTORY, or give a path"
    )


def _demo_file() -> epath.Path:
    file = epath.Path(str(resources.files("dynamicrafter_jax") / "assets" / _DEMO_FILE))
    if not file.exists():
        raise UserError(
            f"this installation has no demo model ({file} is missing): docs/training.md "
            "says how to train it; for a folder of that name, write ./demo"
        )
    return file
