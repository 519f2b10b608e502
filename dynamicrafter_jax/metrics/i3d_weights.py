"""Weights of I3D, read from the files in common use."""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jaxtyping import Array, PyTree

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.i3d import FRAME_SIZE, I3D, MIN_FRAMES
from dynamicrafter_jax.models.layers import abstract_params
from dynamicrafter_jax.runtime.files import as_path
from dynamicrafter_jax.runtime.provenance import sha256_of
from dynamicrafter_jax.weights.release import Naming, ReleaseTensor, Table, release_tensors
from dynamicrafter_jax.weights.tensors import StoredTensor, describe_mismatch, open_tensors
from dynamicrafter_jax.weights.torchscript import is_torchscript, open_torchscript

# Our names of a unit's parts, and their names in the PyTorch port of the network.
_UNIT: Table = {
    "conv": ("conv3d", {}),
    "norm": ("bn", {"(mean|var)": (r"running_\1", {})}),
}
_BLOCKS: Table = {
    "Mixed_.*": (r"\g<0>", {".*": (r"\g<0>", _UNIT)}),
    ".*": (r"\g<0>", _UNIT),
}
_PORT = Naming({"i3d": ""}, {"i3d": _BLOCKS})

_COUNTER = "num_batches_tracked"
_STATISTIC = "bn.running_mean"


def load_i3d(path: epath.PathLike) -> PyTree[Array]:
    """Reads the parameters of `I3D`, all of them or none.

    The files in common use are

    - `i3d_torchscript.pt` of StyleGAN-V, and `i3d_pretrained_400.pt` of VideoGPT: the weights of
      TensorFlow Hub's `i3d-kinetics-400`, with which FVD is defined;
    - `rgb_imagenet.pt` of pytorch-i3d: different weights, which DeepMind released first.

    Distances may be compared only if the weights are the same. The last two files use the names of
    the same PyTorch port. A file without any of these names is read layer by layer in its own
    order, which must be the network's, with exactly the shapes of I3D.

    Args:
        path: A file on this machine that `tensors.open_tensors` reads, or a TorchScript archive.

    Raises:
        UserError: It is missing or broken, or a tensor is missing, unexpected, misshapen or not
            finite.
    """
    if not as_path(path).exists():
        raise UserError(
            f"{path} does not exist: FVD and KVD need the weights of I3D, such as "
            "i3d_torchscript.pt of StyleGAN-V or i3d_pretrained_400.pt of VideoGPT"
        )
    with _open(path) as stored:
        tensors = {name: t for name, t in stored.items() if not name.endswith(_COUNTER)}
        places = _places()
        if not places.keys() & tensors.keys():
            tensors = _in_order(path, places, tensors)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if wrong := describe_mismatch({name: p.shape for name, p in places.items()}, shapes):
            raise UserError(f"{path} is not I3D: {wrong}")
        return traverse_util.unflatten_dict(
            {place.path[1:]: _read(path, place, tensors[name]) for name, place in places.items()}
        )


def describe_i3d(path: epath.PathLike, *, half_pixel_centers: bool = True) -> dict[str, str]:
    """Returns the settings that determine the features of `i3d_features`, to store with them.

    Args:
        path: The weights, whose SHA-256 is included.
        half_pixel_centers: See `i3d.preprocess`.
    """
    positions = "half-pixel centres" if half_pixel_centers else "positions of TensorFlow 1"
    return {
        "network": "I3D, Kinetics-400 RGB, mean logits",
        "weights_sha256": sha256_of(as_path(path)),
        "preprocessing": f"bilinear to {FRAME_SIZE}x{FRAME_SIZE}, {positions}, to [-1, 1]",
    }


def _open(path: epath.PathLike) -> contextlib.AbstractContextManager[dict[str, StoredTensor]]:
    return open_torchscript(path) if is_torchscript(path) else open_tensors(path)


@functools.cache
def _places() -> dict[str, ReleaseTensor]:
    """Returns the parameters by the port's names, in the order in which the network runs."""
    video = jax.ShapeDtypeStruct((1, MIN_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), jnp.float32)
    # A tree's keys are sorted, which is that order.
    return release_tensors({"i3d": abstract_params(I3D(), video)}, _PORT)


def _in_order(
    path: epath.PathLike, places: Mapping[str, ReleaseTensor], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Returns the tensors of a file by the port's names, matched layer by layer.

    If branches were in a different order, shapes would not fit: they differ in all blocks but one.

    Raises:
        UserError: There are more or fewer layers than I3D has.
    """
    ours, theirs = _layers(places), _layers(tensors)
    if len(ours) != len(theirs):
        raise UserError(f"{path} is not I3D: it has {len(theirs)} layers instead of {len(ours)}")
    # Some files list the last layer, the only one without normalisation, before all others.
    ordered = sorted(theirs.values(), key=lambda layer: _STATISTIC not in layer)
    return {
        f"{name}.{part}": tensors[theirs_name]
        for name, layer in zip(ours, ordered, strict=True)
        for part, theirs_name in layer.items()
    }


def _layers(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Returns, for each layer, its tensors' names by the port's names for the parts of a layer."""
    names = dict.fromkeys(names)
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        module, _, leaf = name.rpartition(".")
        part = "bn" if f"{module}.running_mean" in names else "conv3d"
        layers[module.rpartition(".")[0]][f"{part}.{leaf}"] = name
    return layers


def _read(path: epath.PathLike, place: ReleaseTensor, tensor: StoredTensor) -> Array:
    values = place.from_release(tensor.read()).astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{path} can't be used: {place.name} holds NaN or infinite values")
    return jnp.asarray(values)
