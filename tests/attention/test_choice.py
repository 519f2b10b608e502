"""Which kernel is chosen, and that it computes the same on a mesh without gathering."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention import SplitAttention, TemporalAttention, choose_attention
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models.attention import plain_attention, plain_temporal_attention

FRAMES = ("batch", "frames")


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device of a platform that is not here."""

    platform: str
    id: int = 0
    process_index: int = 0
    device_kind: str = ""


def numbers(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize(
    ("platform", "kernel"),
    [
        ("tpu", "splash"),
        ("gpu", "cudnn"),
        ("cuda", "cudnn"),
        ("rocm", "chunked"),
        ("cpu", "chunked"),
    ],
)
def test_the_platform_of_the_mesh_chooses(platform, kernel):
    mesh = Mesh(np.array([Device(platform)], object).reshape(1, 1, 1, 1), sharding.AXES)
    chosen = choose_attention(mesh)
    assert chosen.attention == SplitAttention(mesh, kernel)
    assert chosen.temporal_attention == TemporalAttention(kernel)


def test_a_kernel_can_be_named():
    mesh = sharding.make_mesh()
    assert choose_attention(mesh, "plain") == (plain_attention, plain_temporal_attention)
    assert choose_attention(mesh, "splash").temporal_attention == TemporalAttention("splash")
    with pytest.raises(UserError, match="no attention kernel 'flash': choose plain"):
        choose_attention(mesh, "flash")


def test_kernels_are_equal_by_value():
    """So that networks that hold them are, and programs are compiled once."""
    one, other = (choose_attention(sharding.make_mesh(data=2)) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != choose_attention(sharding.make_mesh(data=4))


@pytest.mark.parametrize("kernel", ["splash", "cudnn", "chunked"])
def test_what_a_fused_kernel_does_not_take_runs_all_the_same(kernel, relative_error):
    query, key, value = (numbers(1, 2, 6, 2, 8, seed=i) for i in range(3))
    attend = choose_attention(sharding.make_mesh(), kernel).attention
    expected = plain_attention(query, key, value)
    assert relative_error(attend(query, key, value, names=FRAMES), expected) < 2e-6


@pytest.mark.parametrize(
    ("sizes", "shared"),
    [((2, 4, 2), False), ((2, 2, 2), True), ((3, 5, 3), True)],
    ids=["even", "shared keys", "uneven, shared keys"],
)
def test_split_over_a_mesh_it_computes_the_same(sizes, shared, relative_error):
    """Clips, frames and heads on two devices each; no device sees another's activations."""
    mesh = sharding.make_mesh(data=2, sequence=2, tensor=2)
    b, t, heads = sizes
    lead = (b,) if shared else (b, t)
    arrays = (
        numbers(b, t, 6, heads, 8),
        numbers(*lead, 7, heads, 8, seed=1),
        numbers(*lead, 7, heads, 8, seed=2),
    )
    attend = choose_attention(mesh).attention

    def run(attend):
        def loss(*arrays):
            y = attend(*arrays, names=FRAMES)
            return (y * numbers(*y.shape, seed=3)).sum(), y

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)

    (_, expected), expected_gradients = jax.jit(run(plain_attention))(*arrays)
    if sizes[0] % 2 == 0:
        names = (*FRAMES, None, "heads", None)
        arrays = tuple(
            jax.device_put(x, NamedSharding(mesh, sharding.split_axes(x.shape, axes, mesh)[0]))
            for x, axes in zip(
                arrays, (names, *2 * [(*names[: len(lead)], *names[2:])]), strict=True
            )
        )
    compiled = jax.jit(run(attend)).lower(*arrays).compile()
    (_, y), gradients = compiled(*arrays)
    assert relative_error(y, expected) < 2e-6
    for ours, plain in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)
    if sizes[0] % 2 == 0:
        forward = jax.jit(lambda *x: attend(*x, names=FRAMES)).lower(*arrays).compile()
        text = str(forward.as_text())
        assert not [kind for kind in ("all-gather", "all-to-all", "all-reduce") if kind in text]
        assert "all-gather" not in str(compiled.as_text())


def test_masks_and_frames_over_all_devices(relative_error):
    mesh = sharding.make_mesh(data=2, sequence=2, tensor=2)
    query, key, value = (numbers(3, 6, 2, 8, seed=i) for i in range(3))
    mask = jnp.tril(jnp.ones((6, 6), bool))
    attend = jax.jit(choose_attention(mesh).attention, static_argnames="names")
    expected = plain_attention(query, key, value, mask)
    assert relative_error(attend(query, key, value, mask), expected) < 2e-6
    everywhere = attend(query, key, value, names=("frames_everywhere",))
    assert relative_error(everywhere, plain_attention(query, key, value)) < 2e-6


@pytest.mark.parametrize("kernel", ["splash", "chunked"])
def test_attention_along_time_is_split_by_pixels_without_gathering(kernel, relative_error):
    mesh = sharding.make_mesh(data=2, sequence=2, tensor=2)
    arrays = tuple(numbers(2, 5, 4, 2, 8, seed=i) for i in range(3))
    expected = plain_temporal_attention(*arrays)
    names = ("batch", None, "pixels", "heads", None)
    where = NamedSharding(mesh, sharding.split_axes(arrays[0].shape, names, mesh)[0])
    arrays = tuple(jax.device_put(x, where) for x in arrays)
    attend = choose_attention(mesh, kernel).temporal_attention
    compiled = jax.jit(attend).lower(*arrays).compile()
    assert relative_error(compiled(*arrays), expected) < 2e-6
    assert "all-gather" not in str(compiled.as_text())


def test_many_frames_go_to_matrix_units(relative_error):
    arrays = tuple(numbers(1, 70, 2, 1, 4, seed=i) for i in range(3))
    expected = plain_temporal_attention(*arrays)
    assert relative_error(TemporalAttention("splash")(*arrays), expected) < 2e-6
    assert "dot_general" in str(jax.make_jaxpr(TemporalAttention("splash"))(*arrays))
