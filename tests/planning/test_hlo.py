"""Counts of small programs, beside closed forms."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from dynamicrafter_jax.planning.hlo import ProgramCounts, read_program
from dynamicrafter_jax.planning.text import Shape
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


def test_trips_follow_from_the_counter_where_the_compiler_states_none():
    text = compiled_text(nested, *NESTED)
    silent, stated = re.subn(r',"known_trip_count":\{"n":"\d+"\}', "", text)
    assert stated == 2
    assert read_program(silent) == read_program(text)


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


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda a, b: jnp.tanh(a @ b), ((256, 128), (128, 512))),
        (lambda a, b: (a + b).sum(0), ((512, 256), (512, 256))),
        (lambda a: jnp.concatenate([a, a * 2]).T, ((300, 200),)),
    ],
)
def test_without_loops_traffic_is_near_that_of_xla(function: Callable, shapes: tuple):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function).lower(*arguments).compile()
    text, cost = compiled.as_text(), compiled.cost_analysis()
    assert text is not None and cost is not None
    assert read_program(text).bytes == pytest.approx(cost["bytes accessed"], rel=0.1)


def test_a_loop_reads_of_an_array_only_the_slices_it_takes():
    def total(rows: jax.Array) -> jax.Array:
        return lax.scan(lambda sums, row: (sums + row, None), jnp.zeros(4096), rows)[0]

    found = counts(total, (100, 4096)).bytes
    row = 4096 * 4
    assert 3 * 100 * row <= found <= 6 * 100 * row  # all rows each time would be 100 * 100 rows


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
    assert [kernel.trips for kernel in found.kernels] == [1]


def test_kernels_count_as_they_declare_or_are_named():
    call = 'custom-call(%a), custom_call_target="tpu_custom_call", backend_config='
    found = entry(
        "%a = f32[8]{0} parameter(0)",
        f'%one = f32[8]{{0}} {call}{{"x":{{"cost_estimate":{{"flops":"1234"}}}}}}',
        f"ROOT %other.2 = f32[8]{{0}} {call}{{}}",
    )
    assert found.flops == 1234
    assert found.uncounted_kernels == ("other",)


@pytest.mark.parametrize(
    ("shape", "hbm"),
    [
        (Shape("bf16", (3, 5), "1,0:T(8,128)(2,1)"), 8 * 128 * 2),
        (Shape("f32", (2, 9, 130), "1,2,0:T(8,128)"), 2 * 136 * 128 * 4),
        (Shape("f32", (64, 64), "1,0:T(8,128)S(1)"), 0),
        (Shape("pred", (10,), "0"), 10),
        (Shape("s4", (10,), ""), 5),
    ],
)
def test_tiles_are_filled_up_and_other_memories_are_not_hbm(shape: Shape, hbm: int):
    assert shape.hbm_bytes == hbm


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
  %next = s32[] add(%by, %i)
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
        (0, 1, "%i.1, %k", "LE", "%n", 11),
        (1, 4, "%i.1, %k", "LT", "%n", 3),  # 1, 5, 9
        (20, -3, "%i.1, %k", "GT", "%n", 4),  # 20, 17, 14, 11
        (19, -3, "%i.1, %k", "GE", "%n", 4),  # 19, 16, 13, 10
        (30, 1, "%i.1, %k", "LT", "%n", 0),
        (2, 1, "%i.1, %n.1", "LT", "%n", 8),  # the end is carried along
        (2, 1, "%n.1, %i.1", "GT", "%n", 8),
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


def test_the_end_of_an_inner_loop_may_be_carried_through_the_outer_one():
    inner = LOOP.format(start=0, by=1, compared="%i.1, %n.1", direction="LT", bound="%n")
    head, _, entry_text = inner.partition("ENTRY %main")
    around = """
%around (c: (s32[], f32[8,8], s32[])) -> (s32[], f32[8,8], s32[]) {
  %c.2 = (s32[], f32[8,8]{1,0}, s32[]) parameter(0)
  %i.2 = s32[] get-tuple-element(%c.2), index=0
  %x.2 = f32[8,8]{1,0} get-tuple-element(%c.2), index=1
  %n.2 = s32[] get-tuple-element(%c.2), index=2
  %zero = s32[] constant(0)
  %one = s32[] constant(1)
  %more = s32[] add(%n.2, %one)
  %inner = (s32[], f32[8,8]{1,0}, s32[]) tuple(%zero, %x.2, %more)
  %within = (s32[], f32[8,8]{1,0}, s32[]) while(%inner), condition=%condition, body=%body
  %y.2 = f32[8,8]{1,0} get-tuple-element(%within), index=1
  %next.2 = s32[] add(%i.2, %one)
  ROOT %t.2 = (s32[], f32[8,8]{1,0}, s32[]) tuple(%next.2, %y.2, %n.2)
}

%condition.2 (c: (s32[], f32[8,8], s32[])) -> pred[] {
  %c.3 = (s32[], f32[8,8]{1,0}, s32[]) parameter(0)
  %i.3 = s32[] get-tuple-element(%c.3), index=0
  %k.3 = s32[] constant(3)
  ROOT %done.3 = pred[] compare(%i.3, %k.3), direction=LT
}

"""
    outer = entry_text.replace(
        "condition=%condition, body=%body", "condition=%condition.2, body=%around"
    )
    found = read_program(f"{head}{around}ENTRY %main{outer}")
    assert found.flops == 3 * 11 * 2 * 8 * 8 * 8
    assert not found.unknown_trips


def test_a_loop_writes_of_what_it_stacks_only_the_slice_it_makes():
    def powers(x: jax.Array) -> jax.Array:
        return lax.scan(lambda x, _: (x * 0.5, x), x, None, length=100)[1]

    row = 4096 * 4
    assert counts(powers, (4096,)).bytes <= 8 * 100 * row  # all rows each time would be 100 * 100
