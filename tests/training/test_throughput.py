"""Operations counted against closed forms and XLA, times against a clock that a test turns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention.splash import splash_attention
from dynamicrafter_jax.training import throughput
from dynamicrafter_jax.training.throughput import Throughput, peak_flops, product_flops

N = 8
SQUARE = jnp.ones((N, N))
PRODUCT = 2 * N**3  # operations of one product of two such matrices


def flops(function, *arguments) -> int:
    return product_flops(jax.jit(function).trace(*arguments).jaxpr)


def looped(x):
    return lax.scan(lambda c, _: (c @ x, None), x, None, length=10)[0]


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x: x @ x, 1),
        (lambda x: jnp.sin(x) + 1, 0),
        (looped, 10),
        (lambda x: lax.fori_loop(0, 7, lambda i, c: c @ x, x), 7),
        (lambda x: lax.map(lambda row: x @ x @ row, x), N + 1),
        (lambda x: lax.map(lambda y: y @ x, jnp.stack([x] * 5), batch_size=2), 5),
        (lambda x: lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x), 2),
        (lambda x: jax.vmap(lambda y: y @ x)(jnp.stack([x] * 3)), 3),
        (lambda x: (x @ x, x @ x @ x)[0], 1),  # nothing depends on the second
        (lambda x: jax.jit(jax.jit(lambda y: y @ y))(x), 1),
        (jax.grad(lambda x: jnp.sum(jnp.sin(x @ x))), 3),
        (jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.sin(x @ x) @ x)))), 2 + 4),
        (jax.grad(lambda x: jnp.sum(jnp.sin(looped(x)))), 30),
    ],
)
def test_products_are_counted_as_often_as_they_run(function, products):
    assert flops(function, SQUARE) == products * PRODUCT


def test_batched_products_are_counted():
    """Attention: queries by keys, then weights by values, in all heads of all clips."""
    b, n, m, heads, d = 2, 5, 7, 3, 4

    def attend(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k))
        return jnp.einsum("bhnm,bmhd->bnhd", weights, v)

    q, kv = jnp.ones((b, n, heads, d)), jnp.ones((b, m, heads, d))
    assert flops(attend, q, kv, kv) == 2 * (2 * b * heads * n * m * d)


@pytest.mark.parametrize("tokens", [512, 2560])  # in one block, and in 4 x 4
def test_a_kernel_counts_in_every_block(tokens):
    """The backward kernels recompute logits: 3 products for queries, 4 for keys and values."""
    shape = jax.ShapeDtypeStruct((2, tokens, 3, 64), jnp.bfloat16)
    product = 2 * (2 * 3 * tokens * tokens * 64)

    def loss(q, k, v):
        return splash_attention(q, k, v).astype(jnp.float32).sum()

    assert flops(splash_attention, shape, shape, shape) == 2 * product
    with_gradient = flops(jax.grad(loss, (0, 1, 2)), shape, shape, shape)
    assert with_gradient == pytest.approx((2 + 3 + 4) * product, rel=1e-3)  # and some row sums


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_counted_as_xla_does(groups):
    image, kernel = jnp.ones((2, 9, 11, 4)), jnp.ones((3, 3, 4 // groups, 6))

    def convolve(image, kernel):
        return lax.conv_general_dilated(
            image,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    counted = flops(convolve, image, kernel)
    assert counted == 2 * (2 * 7 * 9 * 6) * 9 * 4 // groups
    analysis = jax.jit(convolve).lower(image, kernel).compile().cost_analysis()
    assert analysis is not None and counted == analysis["flops"]


def test_both_gradients_of_a_convolution_cost_as_much_as_itself():
    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 2, 4, 6))

    def loss(image, kernel):
        out = lax.conv_general_dilated(
            image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(out**2)

    forward = 2 * (2 * 4 * 4 * 6) * 4 * 4
    assert flops(loss, image, kernel) == forward
    assert flops(jax.grad(loss, (0, 1)), image, kernel) == 3 * forward


def test_all_devices_are_counted_together():
    mesh = sharding.make_mesh(8)
    split = sharding.split_batch(SQUARE, mesh)
    assert flops(lambda x: x @ x, split) == PRODUCT

    def local(rows, whole):
        return rows @ whole

    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert flops(mapped, SQUARE, SQUARE) == PRODUCT


def test_peaks_are_of_one_device_and_never_made_up():
    assert peak_flops("TPU v4") == 275e12
    assert peak_flops("TPU v3") == 123e12 / 2  # a chip is two devices
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    for unknown in ("cpu", "", "TPU v99", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert peak_flops(unknown) is None


class Clock:
    """A clock, and steps that end at given times however long the host is at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(throughput.jax, "block_until_ready", self.wait)

    def __call__(self) -> float:
        return self.now

    def wait(self, end: float) -> None:
        self.now = max(self.now, end)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("in_flight", [0, 1, 2])
def test_times_are_those_of_the_devices_while_the_host_runs_ahead(clock, in_flight):
    timer = Throughput(sharding.make_mesh(8), 4, in_flight=in_flight, clock=clock)
    ends, behind = [], []
    for step in range(10):
        with timer.waiting():
            clock.now += 0.01
        start = max(clock.now, ends[-1] if ends else 0)  # the devices are free
        ends.append(start + (9.0 if step == 5 else 1.0))
        timer.handed_over(ends[-1])
        behind.append(sum(end > clock.now for end in ends))
    assert max(behind) == in_flight
    with timer.paused():
        clock.now += 1000.0
    found = timer.scalars()
    total = ends[-1] - 100.0
    assert found["speed/step_seconds"] == pytest.approx(1.0, abs=0.011)
    assert found["speed/clips_per_second"] == pytest.approx(4 * 10 / total)
    assert found["speed/data_wait"] == pytest.approx(10 * 0.01 / total)
    assert "speed/tflops_per_device" not in found
    assert timer.scalars() == {}


def test_time_spent_waiting_for_data_shows(clock):
    timer = Throughput(sharding.make_mesh(1), 2, clock=clock)
    for _ in range(5):
        with timer.waiting():
            clock.now += 3.0
        timer.handed_over(clock.now + 1.0)
    with timer.paused():
        pass
    found = timer.scalars()
    assert found["speed/data_wait"] == pytest.approx(15 / 16)
    assert found["speed/clips_per_second"] == pytest.approx(10 / 16)


def test_pauses_do_not_count(clock):
    timer = Throughput(sharding.make_mesh(1), 1, in_flight=0, clock=clock)
    for _ in range(3):
        timer.handed_over(clock.now + 2.0)
        with timer.paused():
            clock.now += 50.0
    assert timer.scalars()["speed/clips_per_second"] == pytest.approx(0.5)


@pytest.mark.parametrize("devices", [1, 8])
def test_arithmetic_is_counted_for_each_device(clock, monkeypatch, devices):
    monkeypatch.setattr(throughput, "PEAK_FLOPS", {"cpu": 10e12})
    mesh = sharding.make_mesh(devices)
    timer = Throughput(mesh, 1, 20e12 * devices, in_flight=0, clock=clock)
    for _ in range(3):
        timer.handed_over(clock.now + 4.0)
    found = timer.scalars()
    assert found["speed/tflops_per_device"] == pytest.approx(5.0)
    assert found["speed/utilisation"] == pytest.approx(0.5)
    assert found["memory/peak_gib"] > 0.01

    monkeypatch.setattr(throughput, "PEAK_FLOPS", {})
    timer.handed_over(clock.now + 4.0)
    assert "speed/utilisation" not in timer.scalars()


def test_real_steps_are_timed():
    timer = Throughput(sharding.make_mesh(1), 1)
    step = jax.jit(lambda x: x @ x)
    x = jnp.asarray(np.eye(64, dtype=np.float32))
    for _ in range(4):
        x = step(x)
        timer.handed_over(x)
    assert 0 < timer.scalars()["speed/step_seconds"] < 5
