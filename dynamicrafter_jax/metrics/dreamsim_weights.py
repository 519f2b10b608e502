"""Weights of DreamSim, read from its release files, with LoRA merged."""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.dreamsim import BRANCHES, IMAGE_SIZE, DreamSim
from dynamicrafter_jax.models.layers import abstract_params
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.files import as_path
from dynamicrafter_jax.runtime.placeholders import refuse_placeholder
from dynamicrafter_jax.runtime.provenance import sha256_of
from dynamicrafter_jax.weights.release import Naming, ReleaseTensor, Table, release_tensors
from dynamicrafter_jax.weights.tensors import (
    StoredTensor,
    describe_mismatch,
    layout_of,
    list_names,
    open_tensors,
    write_tensors,
)

_TABLE: Table = {
    r"block_(\d+)": (
        r"blocks.\1",
        {
            r"ln_(\d)": (r"norm\1", {}),
            "qkv": ("attn.qkv", {}),
            "out": ("attn.proj", {}),
            "mlp_in": ("mlp.fc1", {}),
            "mlp_out": ("mlp.fc2", {}),
        },
    ),
    "patch_embed": ("patch_embed.proj", {}),
    "class_embedding": ("cls_token", {}),
    "positional_embedding": ("pos_embed", {}),
    "ln_pre": ("pos_drop", {}),  # it takes this place in DINO's code
    "ln_post": ("norm", {}),
    "projection": ("proj", {}),
}
_NAMING = Naming({"dreamsim": ""}, {"dreamsim": {"(open_)?(clip|dino)": (r"\g<0>", _TABLE)}})

# Leading axes that only the files have, by the ends of names.
_BATCH_AXES = {"cls_token": (1, 1), "pos_embed": (1,)}

_ADAPTERS = {"ensemble": "ensemble_lora", "dino_vitb16": "dino_vitb16_single_lora"}
_BACKBONES = {
    "dino": ("checkpoints/dino_vitbase16_pretrain.pth", "dino_vitbase16_pretrain.pth"),
    "clip": ("clip_vitb16_pretrain.pth.tar",),
    "open_clip": ("open_clip_vitb16_pretrain.pth.tar",),
}
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_CONFIG = "adapter_config.json"

# Settings of adapters that would change how they are merged.
_UNKNOWN_SETTINGS = (
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "use_dora",
    "use_rslora",
)


def load_dreamsim(
    path: epath.PathLike, kind: str = "ensemble", model: DreamSim | None = None
) -> PyTree[Array]:
    """Reads the parameters of `DreamSim`, all of them or none.

    Args:
        path: A folder into which the `dreamsim` package has downloaded its files, version 0.2 or
            newer; or a file that `convert_dreamsim` wrote.
        kind: `ensemble` or `dino_vitb16`.
        model: The model, if its sizes are not those of the released one.

    Raises:
        UserError: The kind is unknown; a file is missing, broken, or would run code; or a
            tensor is missing, unexpected, misshapen or not finite.
    """
    places = _places(_model(kind, model))
    with _open(path, kind, places) as tensors:
        return traverse_util.unflatten_dict(
            {
                place.path[1:]: jnp.asarray(place.from_release(_values(path, name, tensors[name])))
                for name, place in places.items()
            }
        )


def convert_dreamsim(
    folder: epath.PathLike,
    output: epath.PathLike,
    kind: str = "ensemble",
    model: DreamSim | None = None,
) -> None:
    """Writes all weights, with LoRA merged, to one `.safetensors` file that needs no PyTorch.

    Args:
        folder: See `load_dreamsim`.
        output: The file to write.
        kind: See `load_dreamsim`.
        model: See `load_dreamsim`.

    Raises:
        UserError: As in `load_dreamsim`; or the file can't be written.
    """
    if as_path(output).suffix != ".safetensors":
        raise UserError(f"{output} can't be written: give a name that ends in .safetensors")
    with _open(folder, kind, _places(_model(kind, model))) as tensors:
        kept = {
            name: dataclasses.replace(t, dtype=np.dtype(np.float32)) for name, t in tensors.items()
        }
        with files.atomic(output) as temporary, temporary.open("wb") as file:
            named = ((name, _values(folder, name, tensors[name])) for name in layout_of(kept))
            write_tensors(file, layout_of(kept), named)


def describe_dreamsim(path: epath.PathLike, kind: str = "ensemble") -> dict[str, Any]:
    """Returns the settings that determine the vectors of `dreamsim.embed`, to store with measures.

    `files` has the SHA-256 of every file of weights. `weights_sha256` is the SHA-256 of the file,
    or if there are several, of the lines that `sha256sum` would print for them in this order.

    Args:
        path: See `load_dreamsim`.
        kind: See `load_dreamsim`.

    Raises:
        UserError: A file is missing.
    """
    used = _files(path, kind)
    hashes = {name: sha256_of(place) for name, place in used.items()}
    lines = "".join(f"{found}  {name}\n" for name, found in hashes.items())
    (whole,) = hashes.values() if len(hashes) == 1 else [hashlib.sha256(lines.encode()).hexdigest()]
    return {
        "network": f"DreamSim, {kind}",
        "weights_sha256": whole,
        "files": hashes,
        "preprocessing": f"8-bit bicubic to {IMAGE_SIZE}x{IMAGE_SIZE}, as Pillow does it",
    }


def _model(kind: str, model: DreamSim | None) -> DreamSim:
    if kind not in BRANCHES:
        raise UserError(f"DreamSim has no kind {kind}: give one of {', '.join(BRANCHES)}")
    return (model or DreamSim()).copy(branches=BRANCHES[kind])


def _places(model: DreamSim) -> dict[str, ReleaseTensor]:
    """The parameters by their names in a converted file."""
    image = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8)
    return release_tensors({"dreamsim": abstract_params(model, image)}, _NAMING)


def _files(path: epath.PathLike, kind: str) -> dict[str, epath.Path]:
    """Returns the files of weights by name, in a fixed order."""
    place = as_path(path)
    if not place.exists():
        sources = f"{_where_from('', kind)}; {_where_from(_BACKBONES['dino'][0], kind)}"
        raise UserError(f"{path} does not exist: make this folder for DreamSim; {sources}")
    if not place.is_dir():
        return {place.name: place}
    wanted = [_BACKBONES[branch] for branch in BRANCHES[kind]]
    adapter = _ADAPTERS[kind]
    wanted += [(f"{adapter}/{_ADAPTER_CONFIG}",), tuple(f"{adapter}/{n}" for n in _ADAPTER_FILES)]
    found = {}
    for names in wanted:
        present = [name for name in names if (place / name).exists()]
        if not present:
            raise UserError(f"{place / names[0]} does not exist: {_where_from(names[0], kind)}")
        found[present[0]] = place / present[0]
    return found


def _where_from(name: str, kind: str) -> str:
    if name in _BACKBONES["dino"]:
        return (
            "DINO's own weights are https://dl.fbaipublicfiles.com/dino/"
            "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
        )
    return (
        "DreamSim's files are in https://github.com/ssundaram21/dreamsim/releases/download/"
        f"v0.2.0-checkpoints/dreamsim_{kind}_checkpoint.zip, to be unpacked there"
    )


@contextlib.contextmanager
def _open(
    path: epath.PathLike, kind: str, places: Mapping[str, ReleaseTensor]
) -> Iterator[dict[str, StoredTensor]]:
    """Opens the weights in `places`, and no others, by their names in a converted file.

    Raises:
        UserError: A file or tensor is missing, or a tensor unexpected or misshapen.
    """
    shapes = {name: _stored_shape(place) for name, place in places.items()}
    used = _files(path, kind)
    with contextlib.ExitStack() as stack:
        if len(used) == 1:
            (file,) = used.values()
            tensors = stack.enter_context(open_tensors(file))
            _check(file, shapes, tensors)
            yield tensors
            return
        *backbones, config, adapter = used.values()
        tensors: dict[str, StoredTensor] = {}
        for branch, file in zip(BRANCHES[kind], backbones, strict=True):
            stored = stack.enter_context(open_tensors(file))
            found = {f"{branch}.{name}": tensor for name, tensor in stored.items()}
            if branch == "dino":  # its last norm is not run
                found = {n: t for n, t in found.items() if not n.startswith("dino.norm.")}
            wanted = {n: shape for n, shape in shapes.items() if n.startswith(f"{branch}.")}
            _check(file, wanted, found)
            tensors |= found
        stored = stack.enter_context(open_tensors(adapter))
        yield tensors | _merged(adapter, _read_config(config), stored, tensors, BRANCHES[kind])


def _stored_shape(place: ReleaseTensor) -> tuple[int, ...]:
    return (*_BATCH_AXES.get(place.name.rpartition(".")[2], ()), *place.shape)


def _check(
    file: epath.Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, StoredTensor]
) -> None:
    if wrong := describe_mismatch(wanted, {name: tensor.shape for name, tensor in found.items()}):
        raise UserError(f"{file} does not fit DreamSim: {wrong}")


class _Lora(NamedTuple):
    """The settings in an adapter's config: its rank, and the scale of its product."""

    rank: int
    scale: float


def _read_config(file: epath.Path) -> _Lora:
    try:
        config = json.loads(files.read_bytes(file))
        lora = _Lora(int(config["r"]), float(config["lora_alpha"]) / int(config["r"]))
        unknown = [name for name in _UNKNOWN_SETTINGS if config.get(name)]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        refuse_placeholder(file, file)
        raise UserError(f"{file} is not the config of a LoRA adapter: copy it again") from error
    if unknown:
        raise UserError(
            f"{file} can't be used: merging is not supported for its settings {list_names(unknown)}"
        )
    return lora


def _merged(
    file: epath.Path,
    lora: _Lora,
    adapter: Mapping[str, StoredTensor],
    tensors: Mapping[str, StoredTensor],
    branches: Iterable[str],
) -> dict[str, StoredTensor]:
    """Returns the weights that LoRA changes, W + scale B A (arXiv 2106.09685, Eq. 3)."""
    extractor = {branch: str(i) for i, branch in enumerate(branches)}
    wanted, made = {}, {}
    for name, tensor in tensors.items():
        if not (match := re.fullmatch(r"(\w+)\.(.+\.qkv)\.weight", name)):
            continue
        module = f"base_model.model.extractor_list.{extractor[match[1]]}.model.{match[2]}"
        down, up = (f"{module}.lora_{letter}.weight" for letter in "AB")
        outputs, inputs = tensor.shape
        wanted |= {down: (lora.rank, inputs), up: (outputs, lora.rank)}
        made[name] = (tensor, down, up)
    _check(file, wanted, adapter)

    def merge(name: str) -> StoredTensor:
        tensor, down, up = made[name]

        def read() -> Float[np.ndarray, "o i"]:
            a, b = (adapter[part].read().astype(np.float64) for part in (down, up))
            return (tensor.read() + lora.scale * (b @ a)).astype(np.float32)

        return StoredTensor(tensor.shape, np.dtype(np.float32), read)

    return {name: merge(name) for name in made}


def _values(path: epath.PathLike, name: str, tensor: StoredTensor) -> np.ndarray:
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{path} can't be used: {name} holds NaN or infinite values")
    return values
