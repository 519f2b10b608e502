"""Counts of small programs, beside closed forms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from dynamicrafter_jax import sharding
from dynamicrafter_jax.planning import chips
from dynamicrafter_jax.planning.hlo import ProgramCounts, read_program
from dynamicrafter_jax.training.throughput import product_flops


def compiled_text(function: Callable, *shapes: tuple[int, ...]) -> str:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    assert text is not None
    return text


def counts(function: Callable, *shapes: tuple[int, ...]) -> ProgramCounts:
    return read_program(compiled_text(function, *shapes))


def test_a_product_is_two_operations_for_each_term():
    assert counts(lambda a, b: a @ b, (64, 32), (32, 16)).flops == 2 * 64 * 32 * 16


def test_batched_products_count_for_each_batch():
    assert counts(lambda a, b: a @ b, (5, 64, 32), (5, 32, 16)).flops == 5 * 2 * 64 * 32 * 16


def convolution(**options: Any) -> Callable:
    labels = ("NHWC", "HWIO", "NHWC")
    return lambda x, k: lax.conv_general_dilated(x, k, dimension_numbers=labels, **options)


def test_a_convolution_counts_each_tap_of_each_result_borders_too():
    found = counts(
        convolution(window_strides=(2, 1), padding=((1, 1), (0, 2))), (3, 8, 9, 4), (3, 3, 4, 6)
    )
    assert found.flops == 2 * (3 * 4 * 9 * 6) * (3 * 3 * 4)


def test_groups_of_features_see_only_their_own():
    found = counts(
        convolution(window_strides=(1, 1), padding="VALID", feature_group_count=2),
        (1, 6, 6, 4),
        (3, 3, 2, 8),
    )
    assert found.flops == 2 * (4 * 4 * 8) * (3 * 3 * 2)


def test_zeros_between_rows_are_not_multiplied():
    # Spread out and padded by all but one tap, each row meets each tap once.
    found = counts(
        convolution(window_strides=(1, 1), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2)),
        (1, 7, 5, 4),
        (3, 3, 4, 6),
    )
    assert found.flops == 2 * 4 * 6 * (7 * 3) * (5 * 3)


def test_the_gradient_of_a_network_is_what_its_trace_says():
    def loss(kernel: jax.Array, matrix: jax.Array, x: jax.Array) -> jax.Array:
        y = convolution(window_strides=(1, 1), padding="SAME")(x, kernel)
        return jnp.sum(jnp.tanh(y.reshape(-1, 8) @ matrix) ** 2)

    shapes = ((3, 3, 4, 8), (8, 16), (2, 8, 8, 4))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arguments)
    text = traced.lower().compile().as_text()
    assert text is not None
    assert read_program(text).flops == product_flops(traced.jaxpr)


def nested(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    def outer(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, None]:
        inner = lax.fori_loop(0, 7, lambda _, x: jnp.tanh(x @ b), x)
        return jnp.tanh(inner @ matrix), None

    return lax.scan(outer, x, a)[0]


NESTED = ((16, 8), (5, 8, 8), (8, 8))


def test_loops_count_as_often_as_they_run():
    found = counts(nested, *NESTED)
    assert found.flops == 5 * (7 + 1) * 2 * 16 * 8 * 8
    assert not found.unknown_trips


def test_a_loop_that_data_ends_counts_once_and_is_named():
    def until(x: jax.Array, b: jax.Array) -> jax.Array:
        return lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ b, x)

    found = counts(until, (16, 8), (8, 8))
    assert found.flops == 2 * 16 * 8 * 8
    (name,) = found.unknown_trips
    assert name.startswith("while")


def test_a_choice_counts_as_its_longest_branch():
    def either(x: jax.Array, b: jax.Array) -> jax.Array:
        return lax.cond(x[0, 0] > 0, lambda: x @ b @ b, lambda: x @ b)

    assert counts(either, (64, 32), (32, 32)).flops == 2 * 2 * 64 * 32 * 32


HEADER = "HloModule hand, num_partitions=4\n\n"


def entry(*lines: str) -> ProgramCounts:
    body = "\n".join(f"  {line}" for line in lines)
    return read_program(f"{HEADER}ENTRY %main (a: f32[]) -> f32[] {{\n{body}\n}}\n")


@pytest.mark.parametrize(
    ("operands", "result", "attributes", "flops"),
    [
        # The TPU compiler's ways to write 8 products of 64x32 by 32x16: the batch as a window of
        # which one tap falls on the operand.
        (
            ("8,64,32", "8,32,16"),
            "8,64,16",
            "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
            2 * 8 * 64 * 32 * 16,
        ),
        # And one product of 64x32 by 32x(5x16): an axis of the second becomes one of the result.
        (
            ("64,1,32", "5,32,16"),
            "64,5,16",
            "window={size=5 pad=4_4 rhs_reversal=1}, dim_labels=b0f_0io->b0f",
            2 * 64 * 32 * 5 * 16,
        ),
        # An axis that is summed is a window as long as the operand.
        (
            ("8,64,32", "8,32,16"),
            "1,64,16",
            "window={size=8}, dim_labels=0bf_0io->0bf",
            2 * 64 * (8 * 32) * 16,
        ),
    ],
)
def test_products_that_are_written_as_convolutions(
    operands: tuple[str, str], result: str, attributes: str, flops: int
):
    left, right = operands
    found = entry(
        f"%a = bf16[{left}]{{2,1,0:T(8,128)(2,1)}} parameter(0)",
        f"%b = bf16[{right}]{{2,1,0:T(8,128)(2,1)}} parameter(1)",
        f"ROOT %c = bf16[{result}]{{2,1,0}} convolution(%a, %b), {attributes}",
    )
    assert found.flops == flops


def splash(name: str, results: str) -> ProgramCounts:
    return entry(
        "%m = s8[1,2,1]{2,1,0} parameter(0)",
        "%q = bf16[3,2,64,1024]{3,2,1,0} parameter(1)",
        "%k = bf16[3,2,64,640]{3,2,1,0} parameter(2)",
        f"ROOT %{name}.1 = ({results}) custom-call(%m, %q, %k, %k), "
        'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={',
        '}}, backend_config={"custom_call_config":{"body":"TUz"}}',
    )


@pytest.mark.parametrize(
    ("name", "results", "products"),
    [
        ("splash_mha_fwd_residuals", "f32[3,512,64]{2,1,0}, bf16[3,2,1024,64]{3,2,1,0}", 2),
        ("splash_mha_dq_no_residuals", "f32[3,512,64]{2,1,0}, bf16[3,2,1024,64]{3,2,1,0}", 3),
        ("splash_mha_dkv_no_residuals", "f32[3,640,64]{2,1,0}, bf16[3,2,640,64]{3,2,1,0}", 4),
    ],
)
def test_splash_attention_counts_by_the_lengths_it_is_given(name: str, results: str, products: int):
    found = splash(name, results)
    assert found.flops == products * 2 * (3 * 2) * 1024 * 640 * 64


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        read_program("module @jit_f {}")


LOOP = """HloModule hand

%body (c: (s32[], f32[8,8], s32[])) -> (s32[], f32[8,8], s32[]) {{
  %c = (s32[]{{:T(128)}}, f32[8,8]{{1,0}}, s32[]{{:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%c), index=0
  %x = f32[8,8]{{1,0}} get-tuple-element(%c), index=1
  %n = s32[]{{:T(128)}} get-tuple-element(%c), index=2
  %by = s32[] constant({by})
  %next = s32[] add(%i, %by)
  %y = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %t = (s32[], f32[8,8]{{1,0}}, s32[]) tuple(%next, %y, {bound})
}}

%condition (c: (s32[], f32[8,8], s32[])) -> pred[] {{
  %c.1 = (s32[], f32[8,8]{{1,0}}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%c.1), index=0
  %n.1 = s32[] get-tuple-element(%c.1), index=2
  %k = s32[] constant(10)
  ROOT %done = pred[] compare({compared}), direction={direction}
}}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {{
  %a = f32[8,8]{{1,0}} parameter(0)
  %from = s32[] constant({start})
  %start = s32[] copy(%from)
  %most = s32[] constant(10)
  %init = (s32[], f32[8,8]{{1,0}}, s32[]) tuple(%start, %a, %most)
  %loop = (s32[], f32[8,8]{{1,0}}, s32[]) while(%init), condition=%condition, body=%body
  ROOT %r = f32[8,8]{{1,0}} get-tuple-element(%loop), index=1
}}
"""


@pytest.mark.parametrize(
    ("start", "by", "compared", "direction", "bound", "trips"),
    [
        (0, 1, "%i.1, %k", "LT", "%n", 10),
        (1, 4, "%i.1, %k", "LT", "%n", 3),  # 1, 5, 9
        (30, 1, "%i.1, %k", "LT", "%n", 0),
        (0, 1, "%i.1, %k", "LE", "%n", None),
        (0, 1, "%k, %i.1", "LT", "%n", None),
        (2, 1, "%i.1, %n.1", "LT", "%n", None),  # the end is carried along
        (2, 1, "%i.1, %n.1", "LT", "%next", None),  # and changes
    ],
)
def test_trips_of_loops_as_the_tpu_compiler_writes_them(
    start: int, by: int, compared: str, direction: str, bound: str, trips: int | None
):
    text = LOOP.format(start=start, by=by, compared=compared, direction=direction, bound=bound)
    found = read_program(text)
    once = 2 * 8 * 8 * 8
    assert found.flops == once * (1 if trips is None else trips)
    assert found.unknown_trips == (("loop",) if trips is None else ())


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_the_tpu_compilers_own_loops_count_as_their_trace_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # other workers may have it loaded
    topology = chips.topology_devices(chips.parse_topology("v5e:1x1"))
    where = sharding.replicated(sharding.make_mesh(devices=topology))

    def loss(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return nested(x, a, b).sum()

    shapes = ((256, 128), (5, 128, 128), (128, 128))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for shape in shapes]
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arguments)
    found = read_program(str(traced.lower().compile().as_text()))
    assert found.flops == product_flops(traced.jaxpr)
    assert not found.unknown_trips
