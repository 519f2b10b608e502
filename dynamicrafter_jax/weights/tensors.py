"""Named tensors in files: `.safetensors` and PyTorch checkpoints, read one tensor at a time.

The files may come from anyone, so nothing in them is executed. This is the only module that
imports PyTorch.
"""

import contextlib
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime.files import as_path, utf8_path
from dynamicrafter_jax.runtime.placeholders import LOOKED_AT, refuse_placeholder

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_BY_NAME = {dtype.name: dtype for dtype in _CODES}

_TORCH_EXTENSIONS = (".ckpt", ".pt", ".pth", ".bin", ".pth.tar")
EXTENSIONS = (".safetensors", *_TORCH_EXTENSIONS)
"""Extensions of the files that `open_tensors` reads."""

# In older versions, a file can break out of the restricted loader (CVE-2025-32434, CVE-2026-24747).
_SAFE_TORCH = (2, 10)
_DEEPSPEED_PREFIX = "_forward_module."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Attributes:
        shape: Its shape.
        dtype: Its type in the file.
        read: Function that reads it; the file must still be open.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Shaped[np.ndarray, "..."]]


Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]
"""Type and shape of tensors by name, in their order in a file."""


@contextlib.contextmanager
def open_tensors(path: epath.PathLike) -> Iterator[dict[str, StoredTensor]]:
    """Opens a file of named tensors without reading any of them.

    The file may be

    - a `.safetensors` file, memory-mapped;
    - a PyTorch file: `.ckpt`, `.pt`, `.pth`, `.bin` or `.pth.tar`, memory-mapped (one in the
      format used before PyTorch 1.6 is read whole). The tensors are those of the entry
      `state_dict` (Lightning), of `module` (DeepSpeed, without its prefix `_forward_module.`), or
      of the file itself; whatever else is in it is ignored.

    Args:
        path: A file on this machine.

    Yields:
        The tensors by name, valid inside the block.

    Raises:
        UserError: The file is missing, broken or of another kind, holds no tensors or some of an
            unknown type, or would run code; or PyTorch is needed and not installed.
    """
    file = _local_file(path)
    with contextlib.ExitStack() as stack:
        if file.suffix == ".safetensors":
            tensors = _open_safetensors(file, stack)
        elif file.name.endswith(_TORCH_EXTENSIONS):
            tensors = _open_torch(file)
        else:
            known = ", ".join(EXTENSIONS)
            raise UserError(f"{path} can't be read: its extension is not one of {known}")
        if not tensors:
            raise UserError(f"{path} holds no tensors")
        yield tensors


def check_readable(name: str) -> None:
    """Checks, before a download, that `open_tensors` can read a file of this name here.

    Raises:
        UserError: The file needs PyTorch, which is not installed or too old.
    """
    if name.endswith(_TORCH_EXTENSIONS):
        _import_torch(name)


def rename_tensors(
    tensors: Mapping[str, StoredTensor], rename: Callable[[str], str], path: epath.PathLike
) -> dict[str, StoredTensor]:
    """Returns `tensors` with each name passed through `rename`.

    Raises:
        UserError: Two of the tensors, from the file at `path`, would get the same name.
    """
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if (new := rename(name)) in renamed:
            raise UserError(f"{path} holds the tensor {new} twice, once as {name}")
        renamed[new] = tensor
    return renamed


def layout_of(tensors: Mapping[str, StoredTensor]) -> Layout:
    """Returns the layout of a file with these tensors, wider types first."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    return {name: (tensor.dtype, tensor.shape) for name, tensor in ordered}


def write_tensors(
    file: IO[bytes],
    layout: Layout,
    tensors: Iterable[tuple[str, Shaped[np.ndarray, "..."]]],
) -> None:
    """Writes a `.safetensors` file from a stream of tensors, holding one at a time.

    The format is the length of the header (8 bytes, little-endian), the header (JSON), and the
    bytes of the tensors. Readers want every tensor aligned to its own type, so wider types should
    come first.

    Args:
        file: The file, open for writing.
        layout: Type and shape of every tensor by name, in the order of `tensors`.
        tensors: Names and values.

    Raises:
        ValueError: The tensors are not those of the layout.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        entry = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    expected = iter(layout.items())
    for name, array in tensors:
        if (name, (array.dtype, array.shape)) != next(expected, None):
            raise ValueError(f"tensor {name} {array.dtype} {array.shape} is not the next one")
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if missing := next(expected, None):
        raise ValueError(f"tensor {missing[0]} did not come")


def describe_mismatch(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    most: int | None = 10,
) -> str:
    """Says how many names are missing, unexpected or misshapen, and which; "" if none are.

    Args:
        expected: Shapes by name.
        found: Shapes by name.
        most: The largest number of names to list in full; of more, about three are listed. None
            lists all.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [f"{name} {found[name]}" for name in found if name not in expected]
    misshapen = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    kinds = {kind: names for kind, names in kinds.items() if names}
    total = sum(map(len, kinds.values()))
    each = total if most is None or total <= most else 3 // len(kinds)
    return "; ".join(
        f"{len(names)} {kind}: {list_names(names, each)}" for kind, names in kinds.items()
    )


def list_names(names: Iterable[str], most: int = 10) -> str:
    """Returns names separated by commas, and how many more there are than `most`."""
    names = list(names)
    rest = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join(names[:most] + rest)


def _local_file(path: epath.PathLike) -> Path:
    place = os.fspath(as_path(path))
    if "://" in place:
        raise UserError(f"{path} can't be read: copy the file to this machine and give its path")
    file = Path(place)
    if file.is_dir():
        raise UserError(f"{path} is a directory: give the path of a file")
    try:
        with file.open("rb") as opened:
            start = opened.read(LOOKED_AT)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    # Comes before other complaints, such as that PyTorch is needed.
    refuse_placeholder(path, start)
    return file


def _open_safetensors(file: Path, stack: contextlib.ExitStack) -> dict[str, StoredTensor]:
    try:
        opened = stack.enter_context(safe_open(file, framework="numpy"))
    except SafetensorError as error:
        raise UserError(
            f"{file} is truncated or not a .safetensors file ({error}): copy or download it again"
        ) from error
    tensors = {}
    for name in opened.offset_keys():
        header = opened.get_slice(name)
        dtype = _DTYPES.get(code := header.get_dtype())
        tensors[name] = StoredTensor(
            tuple(header.get_shape()),
            _known(dtype, file, name, code),
            lambda name=name: opened.get_tensor(name),
        )
    return tensors


def _open_torch(file: Path) -> dict[str, StoredTensor]:
    torch = _import_torch(file)
    zipped = zipfile.is_zipfile(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about what it then refuses
            place = os.fspath(utf8_path(file))
            content = torch.load(place, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a broken file can break the reader anywhere
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file} was not read: it asks for {wanted[1]}, which could run code; use a "
                ".safetensors version of it or, if you trust it, save only its state_dict"
            ) from error
        raise UserError(
            f"{file} is truncated, or not a PyTorch checkpoint that holds only tensors: "
            "copy or download it again, or use a .safetensors version of it"
        ) from error
    tensors = {
        name: _stored(value, file, name)
        for name, value in _state_dict(content).items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    return rename_tensors(tensors, lambda name: name.removeprefix(_DEEPSPEED_PREFIX), file)


def _state_dict(content: Any) -> Mapping:
    """Returns the part of a checkpoint that holds the model's tensors."""
    if not isinstance(content, Mapping):
        return {}
    for key in ("state_dict", "module"):
        if isinstance(content.get(key), Mapping):
            return content[key]
    return content


def _import_torch(file: Path | str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file} is a PyTorch file: to read it, pip install dynamicrafter-jax[convert], "
            "or use a .safetensors version of it"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_TORCH:
        oldest = ".".join(map(str, _SAFE_TORCH))
        raise UserError(
            f"PyTorch {torch.__version__} can be made to run code by a checkpoint: "
            f"install {oldest} or newer to read {file}, or use a .safetensors version of it"
        )
    return torch


def _stored(tensor: Any, file: Path, name: str) -> StoredTensor:
    """Wraps a `torch.Tensor`."""
    import torch

    type_name = str(tensor.dtype).removeprefix("torch.")
    dtype = _known(_BY_NAME.get(type_name), file, name, type_name)
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise UserError(f"{file} can't be read: tensor {name} is sparse or has no values")

    def read() -> np.ndarray:
        values = tensor.detach()
        if tensor.dtype == torch.bfloat16:  # which PyTorch can't convert to NumPy
            values = values.contiguous().view(torch.int16)
        return values.numpy(force=True).view(dtype)

    return StoredTensor(tuple(tensor.shape), dtype, read)


def _known(dtype: np.dtype | None, file: Path, name: str, type_name: str) -> np.dtype:
    if dtype is None:
        raise UserError(
            f"{file} can't be read: tensor {name} has the type {type_name}, which is not supported"
        )
    return dtype
