"""Measures training speed: clips a second, FLOP/s, and the share of the devices' peak."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from dynamicrafter_jax.runtime.provenance import peak_memory

PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Peak FLOP/s of one JAX device, by `device_kind`: bfloat16 products without sparsity, as the
makers publish them. A chip of TPU v2, v3 and 7x is two devices, each with half of its figure."""


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's peak FLOP/s in bfloat16; None if it is not known."""
    return PEAK_FLOPS.get(device_kind)


def product_flops(program: ClosedJaxpr) -> int:
    """Counts the floating-point operations of a program's matrix products and convolutions.

    A multiplication and its addition count as two. XLA's own count (`cost_analysis`) counts the
    body of a loop once, however often it runs, and so misses most of a step that accumulates
    gradients or encodes a few frames at a time. Here a loop counts as often as it runs, except for
    a `while` whose end depends on data, which counts once. What the backward pass recomputes is
    counted again. Dead code is not counted, and neither are norms, softmax and the like. The count
    is for the whole program, over all devices.

    Args:
        program: `jax.jit(function).trace(*arguments).jaxpr`.
    """
    return _count(program.jaxpr)


def _count(program: Jaxpr) -> int:
    total = 0
    needed = {id(variable) for variable in program.outvars}
    for equation in reversed(program.eqns):
        if equation.effects or any(id(variable) in needed for variable in equation.outvars):
            needed.update(id(variable) for variable in equation.invars)
            total += _cost(equation)
    return total


def _cost(equation: Any) -> int:
    parameters = equation.params
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
            return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        case "conv_general_dilated":
            kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
            out_features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            # The zeros between the rows of a dilated input are not multiplied.
            spread = math.prod(parameters["lhs_dilation"])
            return 2 * math.prod(out) * math.prod(kernel) // out_features // spread
        case "cond":
            return max(_count(branch.jaxpr) for branch in parameters["branches"])
        case "scan":
            return parameters["length"] * _count(parameters["jaxpr"].jaxpr)
        case "shard_map":
            sizes = parameters["mesh"].shape
            shards = math.prod(sizes[axis] for axis in parameters["newly_manual_axes"])
            return shards * _count(parameters["jaxpr"])
        case "pallas_call" if parameters["cost_estimate"] is None:
            return math.prod(parameters["grid_mapping"].grid) * _count(parameters["jaxpr"])
    if parameters.get("cost_estimate") is not None:  # a kernel that estimates its own cost
        return parameters["cost_estimate"].flops
    return sum(_count(inner) for value in parameters.values() for inner in _programs(value))


def _programs(value: Any) -> Iterator[Jaxpr]:
    """Yields the programs inside a parameter of a primitive."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _programs(item)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


class Throughput:
    """Times steps without making the devices wait for the host.

    JAX returns from a step before it is done, so the time of a call means nothing. Here the host
    waits, after it has dispatched a step, for one dispatched a little earlier. So the devices
    always have the next step queued, and the end of each step is observed. This also limits the
    number of batches that wait on the devices.

        with throughput.waiting():
            batch = next(batches)
        state, metrics = train_step(state, batch, rng)
        throughput.handed_over(metrics)

    """

    def __init__(
        self,
        mesh: Mesh,
        clips_per_step: int,
        flops_per_step: float | int | None = None,
        *,
        in_flight: int = 2,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Takes the size of steps.

        Args:
            mesh: The devices that a step runs on.
            clips_per_step: Clips per step, over all devices.
            flops_per_step: FLOPs per step over all devices, as counted by `product_flops`; None if
                not known.
            in_flight: Steps that may be unfinished after one has been dispatched.
            clock: Returns seconds.
        """
        self._devices = mesh.devices
        self._clips = clips_per_step
        self._flops = flops_per_step
        self._in_flight = in_flight
        self._clock = clock
        self._unfinished: deque[Any] = deque()
        self._last: float | None = None  # when the last step ended, or the first began
        self._seconds: list[float] = []
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for data."""
        started = self._begin()
        yield
        self._waited += self._clock() - started

    def handed_over(self, result: Any) -> None:
        """Records that a step was dispatched, and waits until few enough are unfinished.

        Args:
            result: Outputs of the step that are not donated to a later step.
        """
        self._begin()
        self._unfinished.append(result)
        self._finish(self._in_flight)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside: validation, samples, checkpoints."""
        self._finish(0)
        yield
        self._last = None

    def scalars(self) -> dict[str, float]:
        """Returns measurements since the last call; empty if no step ended.

        - `speed/clips_per_second`, over all devices;
        - `speed/step_seconds`, the median;
        - `speed/data_wait`, the share of time, 0 to 1, that the host waited for data;
        - `speed/tflops_per_device`, in 1e12 FLOP/s, if `flops_per_step` is known;
        - `speed/utilisation`, this as a share of the device's peak in bfloat16, 0 to 1, if the peak
          is known;
        - `memory/peak_gib`: see `provenance.peak_memory`.
        """
        seconds, self._seconds = self._seconds, []
        waited, self._waited = self._waited, 0.0
        total = sum(seconds)
        if not total:
            return {}
        found = {
            "speed/clips_per_second": self._clips * len(seconds) / total,
            "speed/step_seconds": median(seconds),
            "speed/data_wait": min(waited / total, 1.0),
            "memory/peak_gib": peak_memory() / 2**30,
        }
        if self._flops:
            rate = self._flops * len(seconds) / total / self._devices.size
            found["speed/tflops_per_device"] = rate / 1e12
            if peak := peak_flops(self._devices.flat[0].device_kind):
                found["speed/utilisation"] = rate / peak
        return found

    def _begin(self) -> float:
        now = self._clock()
        if self._last is None:
            self._last = now
        return now

    def _finish(self, unfinished: int) -> None:
        """Waits until only `unfinished` steps are unfinished, and records when the others ended."""
        while len(self._unfinished) > unfinished:
            jax.block_until_ready(self._unfinished.popleft())
            now = self._clock()
            if self._last is not None:
                self._seconds.append(now - self._last)
            self._last = now
