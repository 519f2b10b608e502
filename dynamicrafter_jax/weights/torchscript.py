"""Named tensors in TorchScript archives, read as data.

An archive is a zip file with code, the tensors' bytes, and a pickle that says which module holds
which tensor. The pickle is read by an interpreter that knows only a handful of harmless names, and
the code is never read, so nothing in a file is executed. PyTorch is not needed.
"""

import contextlib
import functools
import math
import os
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights.tensors import StoredTensor

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def is_torchscript(path: epath.PathLike) -> bool:
    """Returns whether there is a TorchScript archive at `path`."""
    try:
        with zipfile.ZipFile(os.fspath(path)) as archive:
            return _root(archive) is not None
    except (OSError, zipfile.BadZipFile):
        return False


@contextlib.contextmanager
def open_torchscript(path: epath.PathLike) -> Iterator[dict[str, StoredTensor]]:
    """Opens a TorchScript archive without reading any tensor.

    Args:
        path: A file on this machine for which `is_torchscript` is true.

    Yields:
        Parameters and buffers by name, in the order of the modules; valid inside the block.

    Raises:
        UserError: The archive is broken, holds no named tensors because its module was frozen, or
            asks for anything but modules and tensors.
    """
    with zipfile.ZipFile(os.fspath(path)) as archive:
        root = _root(archive)
        if root is None:
            raise UserError(f"{path} is not a TorchScript archive")
        try:
            with archive.open(f"{root}/data.pkl") as file:
                module = _Unpickler(file).load()
            tensors = {
                name: StoredTensor(
                    tensor.shape,
                    tensor.storage.dtype,
                    functools.partial(_read, path, archive, root, name, tensor),
                )
                for name, tensor in _walk(module, set())
            }
        except _RefusedError as error:
            raise UserError(
                f"{path} was not read: it asks for {error}, which is neither a module nor a "
                "tensor; if you trust it, save only its state_dict"
            ) from error
        except Exception as error:  # a broken pickle can break its reader anywhere
            raise UserError(f"{path} is broken: copy or download it again") from error
        if not tensors:
            raise UserError(f"{path} holds no tensors by name: use one that was not frozen")
        yield tensors


class _Storage(NamedTuple):
    """The bytes of tensors, stored in the archive under a key."""

    dtype: np.dtype
    key: str
    length: int


class _Tensor(NamedTuple):
    """A tensor as a part of its storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """An object of any class that the archive defines."""

    attributes: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = dict(state)


class _RefusedError(Exception):
    """The pickle asks for something that is not known to be harmless."""


class _Unpickler(pickle.Unpickler):
    """Reads any class as a `_Module`, and any tensor as a `_Tensor`."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.jit._pickle", "build_intlist"): _keep,
            ("torch.jit._pickle", "build_doublelist"): _keep,
            ("torch.jit._pickle", "build_boollist"): _keep,
            ("torch.jit._pickle", "build_tensorlist"): _keep,
            ("torch.jit._pickle", "restore_type_tag"): _keep,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in known:
            raise _RefusedError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, length = pid
        return _Storage(dtype, key, length)


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _keep(value: Any, *_: Any) -> Any:
    return value


def _walk(module: _Module, seen: set[int], prefix: str = "") -> Iterator[tuple[str, _Tensor]]:
    """Yields the tensors of a module and its submodules, each module once."""
    seen.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, _Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module) and id(value) not in seen:
            yield from _walk(value, seen, f"{prefix}{name}.")


def _read(
    path: epath.PathLike, archive: zipfile.ZipFile, root: str, name: str, tensor: _Tensor
) -> np.ndarray:
    """Returns the values of a tensor that lies within its storage."""
    storage, offset, shape, strides = tensor
    try:
        values = np.frombuffer(archive.read(f"{root}/data/{storage.key}"), storage.dtype)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is broken at tensor {name}: copy or download it again") from error
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (math.prod(shape) and last >= len(values)):
        raise UserError(
            f"{path} is broken: tensor {name} reaches past its data; copy or download it again"
        )
    steps = [step * storage.dtype.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()


def _root(archive: zipfile.ZipFile) -> str | None:
    """Returns the archive's only folder if it is TorchScript; other archives have no constants."""
    names = set(archive.namelist())
    roots = {name.split("/")[0] for name in names}
    found = [root for root in roots if {f"{root}/data.pkl", f"{root}/constants.pkl"} <= names]
    return found[0] if found else None
