"""Finds, reads and stores configs, and builds the networks that they describe."""

import dataclasses
import importlib.util
import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Common, Models, build_models
from dynamicrafter_jax.models.attention import (
    AttentionFn,
    TemporalAttentionFn,
    plain_attention,
    plain_temporal_attention,
)

T = TypeVar("T")

# Types for computations and for stored parameters.
DTYPES = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}


def config_path(name_or_path: str | Path) -> Path:
    """Returns the file of a config, given its path or the name of a packaged config.

    Raises:
        UserError: There is no such file or config.
    """
    path = Path(name_or_path)
    if path.suffix == ".py":
        if path.is_file():
            return path
        path = Path(path.stem)
    folder = _configs_folder()
    shipped = folder / f"{path.name}.py"
    if str(path) == path.name and path.name != "__init__" and shipped.is_file():
        return shipped
    raise UserError(
        f"no config {str(name_or_path)!r}: give a file, or one of {', '.join(config_names())}"
    )


def config_names() -> list[str]:
    """Returns the names of the packaged configs."""
    return sorted(file.stem for file in _configs_folder().glob("[!_]*.py"))


def load_config(config: ConfigDict | str | Path) -> ConfigDict:
    """Returns a config, given a `ConfigDict`, a config file or the name of a packaged config.

    Config files are Python code, like the rest of a project, and are executed.

    Raises:
        UserError: There is no such config, or the file has no `get_config`.
    """
    if isinstance(config, ConfigDict):
        return config
    path = config_path(config)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config()")
    return module.get_config()


def config_to_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON types."""
    return json.loads(config.to_json_best_effort())


def config_from_json(values: dict[str, Any]) -> ConfigDict:
    """Returns the config that `config_to_json` stored, with lists as tuples again.

    An unset field can still be set, in the type that it has in `configs/i2v_512.py`.
    """
    return ConfigDict(_restore(values, load_config("i2v_512")))


def _restore(values: dict[str, Any], like: ConfigDict) -> dict[str, Any]:
    restored: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            below = like.get(key)
            value = _restore(value, below if isinstance(below, ConfigDict) else ConfigDict())
        elif isinstance(value, list):
            value = tuple(value)
        elif value is None and key in like:
            value = placeholder(like.get_type(key))
        restored[key] = value
    return restored


def deciding_sections(config: ConfigDict) -> dict[str, Any]:
    """Returns, as plain JSON types, the sections that determine the result of any request.

    The settings of sampling also determine it, but differ from request to request.
    """
    described = config_to_json(config)
    return {name: described[name] for name in (*Models._fields, "diffusion", "precision")}


def networks_of(
    config: ConfigDict,
    kernels: tuple[AttentionFn, TemporalAttentionFn] = (plain_attention, plain_temporal_attention),
) -> Models:
    """Builds the five networks that a config describes.

    Args:
        config: A config, as in `configs/`.
        kernels: Attention within frames, and along time.

    Raises:
        UserError: The config names an unknown hyperparameter or type.
    """
    types = {}
    for name in ("dtype", "param_dtype"):
        if config.precision[name] not in DTYPES:
            raise UserError(
                f"precision.{name} is {config.precision[name]!r}: choose {' or '.join(DTYPES)}"
            )
        types[name] = DTYPES[config.precision[name]]
    try:
        sections = {name: config[name].to_dict() for name in Models._fields}
        attention, temporal_attention = kernels
        common = Common(attention=attention, temporal_attention=temporal_attention, **types)
        return build_models(sections, common)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"the config does not fit the networks: {error}") from error


def matmul_precision(config: ConfigDict) -> AbstractContextManager:
    """Sets the precision of float32 products on accelerators to that of the config.

    Products of bfloat16 are exact in one pass, so the setting has no effect on them.
    """
    exact = config.precision.dtype == "bfloat16"
    return jax.default_matmul_precision("default" if exact else config.precision.matmul)


def settings_of(cls: type[T], name: str, section: ConfigDict, **overrides: object) -> T:
    """Builds a dataclass from a config section's fields, some of them overridden.

    A section may lack a field that has a default, as the configs of older models do.

    Args:
        cls: The dataclass; its fields' types are enforced, and it checks their values itself.
        name: Name of the section, for messages.
        section: The section.
        **overrides: Values to use instead of the section's.

    Raises:
        UserError: A field is unknown or missing, or a value has the wrong type or is out of range.
    """
    assert dataclasses.is_dataclass(cls)
    values = {**section.to_dict(), **overrides}
    kinds = {field.name: get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}
    if unknown := set(values) - set(kinds):
        raise UserError(
            f"unknown {name} setting {', '.join(sorted(unknown))}: choose from {list(kinds)}"
        )
    needed = {
        field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING
    }
    if missing := needed - set(values):
        raise UserError(f"the config's {name} section lacks {', '.join(sorted(missing))}")
    checked = {key: _as_kind(f"{name}.{key}", kinds[key], value) for key, value in values.items()}
    return cls(**checked)


def _as_kind(name: str, kind: Any, value: Any) -> Any:
    """Returns a setting in the type of its field; a whole number is accepted as any number."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{name} is {value!r}: choose from {', '.join(get_args(kind))}")
        return value
    choices = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    if isinstance(value, int) and not isinstance(value, bool) and int not in choices:
        if abs(value) > sys.float_info.max:
            raise UserError(f"{name} is too large: a number below 1e308 is needed")
        value = float(value) if float in choices else value
    for choice in choices:
        is_bool = isinstance(value, bool) and choice is not bool
        if isinstance(value, get_origin(choice) or choice) and not is_bool:
            return value
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    wanted = " or ".join(names.get(choice, str(choice)) for choice in choices if choice in names)
    raise UserError(f"{name} is {value!r}: {wanted} is needed")


def _configs_folder() -> Path:
    """Returns the folder of the packaged configs, in a clone or an installation."""
    spec = importlib.util.find_spec("dynamicrafter_jax.configs")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
