"""I3D against the numbers of its PyTorch port, and its parts against other implementations."""

from types import SimpleNamespace

import i3d_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.i3d import I3D, Conv3D, i3d_features, max_pool, preprocess

TAPS = [name for name in i3d_files.golden() if name.startswith("tap_")]

# The file's numbers are float32; the target of evaluation is 1e-4.
TARGET = 1e-5


def test_logits_and_blocks(i3d_params, relative_error):
    golden, seed = i3d_files.golden(), int(i3d_files.golden()["clip_seed"])
    clips = np.stack([i3d_files.clip(seed, 16), i3d_files.clip(seed + 10, 16)])

    @jax.jit
    def run(params, clips):
        def is_tapped(module, _):
            return f"tap_{module.name}" in TAPS

        return I3D().apply({"params": params}, clips, capture_intermediates=is_tapped)

    logits, captured = run(i3d_params, clips)
    assert relative_error(logits, golden["logits"]) < TARGET
    assert len(TAPS) == 4
    for tap in TAPS:
        (block,) = captured["intermediates"][tap.removeprefix("tap_")]["__call__"]
        assert relative_error(block[:1, ::2, ::7, ::7, ::8], golden[tap]) < TARGET, tap


run_i3d = jax.jit(I3D().apply)


def test_logits_are_averaged_over_more_frames(i3d_params, relative_error):
    clip = i3d_files.clip(int(i3d_files.golden()["clip_seed"]) + 20, 24)
    logits = run_i3d({"params": i3d_params}, clip[None])
    assert relative_error(logits, i3d_files.golden()["logits_24"]) < TARGET


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def pixels(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape), jnp.uint8)


@pytest.mark.parametrize("length", [5, 6, 7])
@pytest.mark.parametrize(("kernel_size", "stride"), [(7, 2), (3, 1), (1, 1)])
def test_convolutions_are_three_dimensional(length, kernel_size, stride, relative_error):
    x, k = numbers(0, 2, length, 9, 8, 3), kernel_size
    kernel, bias = numbers(1, k, k, k, 3, 4), numbers(2, 4)
    params = {"kernel": kernel, "bias": bias}
    ours = Conv3D(4, kernel_size, stride).apply({"params": params}, x)
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 3, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    assert relative_error(ours, theirs + bias[None, None, None, None]) < 1e-5


def test_an_even_convolution_pads_two_before_and_three_behind():
    x = np.zeros((1, 16, 16, 16, 1), np.float32)
    x[0, 0, 0, 0] = 1
    kernel = jnp.arange(7.0**3).reshape(7, 7, 7, 1, 1)
    y = Conv3D(1, 7, 2, use_bias=False).apply({"params": {"kernel": kernel}}, jnp.asarray(x))
    assert np.asarray(y)[0, 0, 0, 0, 0] == kernel[2, 2, 2, 0, 0]


@pytest.mark.parametrize("length", [5, 6])
@pytest.mark.parametrize(
    ("window", "stride"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3,) * 3, (1,) * 3)],
)
def test_pools_are_three_dimensional(length, window, stride):
    x = jnp.abs(numbers(0, 2, length, 7, 8, 3))
    sizes = zip(x.shape[1:4], window, stride, strict=True)
    wide = [max((-(-n // step) - 1) * step + size - n, 0) for n, size, step in sizes]
    padded = np.pad(x, [(0, 0), *[(n // 2, n - n // 2) for n in wide], (0, 0)])
    places = np.lib.stride_tricks.sliding_window_view(padded, window, (1, 2, 3))
    t, h, w = stride
    assert np.array_equal(max_pool(x, window, stride), places[:, ::t, ::h, ::w].max((-3, -2, -1)))


@pytest.mark.parametrize(("height", "width"), [(256, 256), (100, 300), (224, 224)])
def test_frames_are_resized_as_pytorch_does(height, width):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch's interpolation")
    frames = pixels(0, 1, 2, height, width, 3)
    their_frames = torch.from_numpy(np.array(frames[0])).permute(0, 3, 1, 2).float()
    theirs = torch.nn.functional.interpolate(
        their_frames, (224, 224), mode="bilinear", align_corners=False
    )
    ours = np.asarray(jax.jit(preprocess)(frames))
    assert ours.dtype == np.float32
    assert np.abs(ours[0] - (theirs.permute(0, 2, 3, 1).numpy() / 127.5 - 1)).max() < 1e-6


@pytest.mark.parametrize("half_pixel_centers", [True, False])
def test_resizing_puts_pixels_where_it_says(half_pixel_centers):
    """Along a ramp, a resized pixel's value is its position, but at the borders."""
    ramp = jnp.broadcast_to(
        jnp.arange(250, dtype=jnp.uint8)[None, None, :, None, None], (1, 1, 250, 300, 3)
    )
    ours = (np.asarray(preprocess(ramp, half_pixel_centers))[0, 0, :, 7, 1] + 1) * 127.5
    half = 0.5 if half_pixel_centers else 0
    positions = (np.arange(224) + half) * 250 / 224 - half
    assert np.abs(ours - positions.clip(0, 249)).max() < 1e-4


@pytest.mark.parametrize("half_pixel_centers", [True, False])
def test_features_are_logits_of_resized_frames(i3d_params, monkeypatch, half_pixel_centers):
    frames = pixels(0, 1, 24, 40, 60, 3)
    resized = preprocess(frames, half_pixel_centers)
    compiled = SimpleNamespace(apply=run_i3d)
    monkeypatch.setattr("dynamicrafter_jax.metrics.i3d.I3D", lambda: compiled)
    features = i3d_features(i3d_params, frames, half_pixel_centers=half_pixel_centers)
    assert np.array_equal(features, run_i3d({"params": i3d_params}, resized))


def test_wrong_clips_are_refused():
    network = I3D(frame_size=32)
    with pytest.raises(UserError, match="clips of 8 frames are too short"):
        network.init(jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))
    with pytest.raises(ValueError, match="32x32, got 32x64"):
        network.init(jax.random.key(0), jnp.zeros((1, 16, 32, 64, 3)))
