"""Writes a converted model as a release file again, for use with PyTorch."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import PyTree, Shaped
from ml_collections import ConfigDict
from tqdm import tqdm

from dynamicrafter_jax.config import DTYPES, config_from_json
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.files import as_path, atomic, check_writable
from dynamicrafter_jax.weights import converted
from dynamicrafter_jax.weights.load import abstract_params
from dynamicrafter_jax.weights.release import (
    adapters,
    release_tensors,
    schedule_buffers,
    unused_tensors,
)
from dynamicrafter_jax.weights.tensors import (
    Layout,
    StoredTensor,
    layout_of,
    list_names,
    write_tensors,
)

EXPORT_DTYPES = DTYPES | {"float16": jnp.dtype(jnp.float16)}


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was converted or exported.

    Attributes:
        tensors: Number of tensors that hold parameters.
        parameters: Number of parameters in them.
        carried: Number of further tensors, kept so that an export is a complete release file.
        taken: For a training run, which of its parameters these are, in words; otherwise empty.
    """

    tensors: int
    parameters: int
    carried: int
    taken: str = ""


def export(
    directory: epath.PathLike,
    path: epath.PathLike,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Writes a converted model as a release file, complete if it carries all further tensors.

    Adapters, which no release has, are left out with a warning.

    Args:
        directory: The converted model.
        path: The `.safetensors` file to write.
        dtype: One of `EXPORT_DTYPES`, for everything but the schedule's buffers, which stay
            float32; by default each tensor keeps its type.
        overwrite: Whether to replace an existing file.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Raises:
        UserError: The directory is not a complete converted model, a value does not fit
            `dtype`, or the file can't be written.
    """
    place = as_path(path)
    if place.suffix != ".safetensors":
        raise UserError(f"{path} can't be written: give a name that ends in .safetensors")
    if place.exists() and not overwrite:
        raise UserError(f"{path} exists: give another path, or set overwrite")
    check_writable(place)
    description = converted.read_description(directory)
    config = config_from_json(description["config"])
    boxed = abstract_params(config)
    if left_out := adapters(boxed):
        warnings.warn(
            f"{path} leaves out {len(left_out)} parameters that no release has: "
            f"{list_names(left_out)}",
            stacklevel=2,
        )
    with converted.open_carried(directory) as carried:
        _report_lacking(config, carried, directory)
        stored_dtype = DTYPES[description["dtype"]]
        layout = release_layout(config, boxed, layout_of(carried), stored_dtype, dtype)
        others = carried | _buffers(config)
        params = _read_params(directory, boxed)
        with atomic(place) as temporary, temporary.open("wb") as file:
            names = tqdm(layout, unit=" tensors", leave=False, disable=None if progress else True)
            found = ((n, others[n].read()) if n in others else next(params) for n in names)
            write_tensors(file, layout, ((n, _cast(n, v, layout[n][0])) for n, v in found))
        sizes = [math.prod(shape) for name, (_, shape) in layout.items() if name not in others]
        return Summary(len(sizes), sum(sizes), len(carried))


def release_layout(
    config: ConfigDict,
    boxed: Mapping[str, PyTree],
    carried: Layout,
    stored_dtype: np.dtype,
    dtype: str | None = None,
) -> Layout:
    """Returns the type and shape of every tensor in a release file, in the order of an export.

    Args:
        config: The config of the model.
        boxed: Its parameters, as returned by `load.abstract_params`.
        carried: Type and shape of the carried tensors.
        stored_dtype: Type of the parameters in the converted model.
        dtype: As in `export`.
    """
    chosen = None if dtype is None else EXPORT_DTYPES[dtype]
    params = {name: tensor.shape for name, tensor in release_tensors(boxed).items()}
    layout = {name: (chosen or stored_dtype, shape) for name, shape in params.items()}
    for name, (kept, shape) in carried.items():
        layout[name] = (chosen or kept if jnp.issubdtype(kept, jnp.floating) else kept, shape)
    layout |= layout_of(_buffers(config))
    # Readers want each tensor aligned to its type. Otherwise the order is kept, so that of the
    # parameters does not change: they are all of one type.
    return dict(sorted(layout.items(), key=lambda item: -item[1][0].itemsize))


def _buffers(config: ConfigDict) -> dict[str, StoredTensor]:
    buffers = schedule_buffers(config.diffusion.to_dict())
    return {
        name: StoredTensor(table.shape, table.dtype, lambda table=table: table)
        for name, table in buffers.items()
    }


def _report_lacking(config: ConfigDict, carried: Mapping, directory: epath.PathLike) -> None:
    unused = unused_tensors(config.text_encoder.layers)
    lacking = [n for n, fate in unused.items() if fate == "carried" and n not in carried]
    if lacking:
        names = list_names(lacking, most=len(lacking))
        warnings.warn(
            f"{directory} carries no {names}: without them, the export is not a complete release",
            stacklevel=3,
        )


def _read_params(
    directory: epath.PathLike, boxed: Mapping[str, PyTree]
) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Yields the parameters by release name in the release's layout, in the order of `boxed`."""
    for section, tree in boxed.items():
        read = converted.open_tree(converted.section_path(directory, section), nn.meta.unbox(tree))
        for tensor in release_tensors({section: tree}).values():
            yield tensor.name, tensor.to_release(np.asarray(read(tensor.path[1:])))


def _cast(
    name: str, values: Shaped[np.ndarray, "*shape"], dtype: np.dtype
) -> Shaped[np.ndarray, "*shape"]:
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise UserError(f"{name} has values too large for {dtype}: export as float32 or bfloat16")
    return cast
