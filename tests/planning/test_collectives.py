"""What devices send, beside closed forms, on eight simulated devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynamicrafter_jax.planning.hlo import Collective, read_program

ROWS, COLUMNS = 32, 16  # of the part that a device has
SIZE = 4 * ROWS * COLUMNS


def collectives(function: Callable) -> tuple[Collective, ...]:
    """Those of a function of each device's part, on a mesh of 2 x 4."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto,) * 2)
    split = PartitionSpec("x", "y")
    run = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    whole = jax.ShapeDtypeStruct(
        (2 * ROWS, 4 * COLUMNS), jnp.float32, sharding=NamedSharding(mesh, split)
    )
    text = jax.jit(run).lower(whole).compile().as_text()
    assert text is not None
    return read_program(text).collectives


@pytest.mark.parametrize(
    ("function", "kind", "sent", "result"),
    [
        (
            lambda x: lax.all_gather(x, "y", tiled=True),
            "all-gather",
            3 * SIZE,
            (4 * ROWS, COLUMNS),
        ),
        (
            lambda x: lax.psum_scatter(x, "x", tiled=True),
            "reduce-scatter",
            SIZE // 2,
            (ROWS // 2, COLUMNS),
        ),
        (
            lambda x: lax.psum(x, ("x", "y")),
            "all-reduce",
            2 * 7 * SIZE // 8,
            (ROWS, COLUMNS),
        ),
        (
            lambda x: lax.all_to_all(x, "y", 0, 1, tiled=True),
            "all-to-all",
            3 * SIZE // 4,
            (ROWS // 4, COLUMNS),
        ),
        (
            lambda x: lax.ppermute(x, "y", [(i, (i + 1) % 4) for i in range(4)]),
            "collective-permute",
            SIZE,
            (ROWS, COLUMNS),
        ),
    ],
)
def test_bytes_sent(function: Callable, kind: str, sent: int, result: tuple[int, ...]):
    (found,) = collectives(function)
    assert (found.kind, found.trips, found.bytes) == (kind, 1, sent)
    assert set(found.results) == {result}


def test_those_in_loops_count_as_often_as_they_run():
    def repeatedly(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, 6, lambda _, x: lax.psum(jnp.tanh(x), "y"), x)

    (found,) = collectives(repeatedly)
    assert (found.trips, found.bytes) == (6, 6 * 2 * 3 * SIZE // 4)


@pytest.mark.parametrize(
    ("attributes", "devices"),
    [
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", 2),
        ("replica_groups={}", 8),
    ],
)
def test_groups_in_every_form(attributes: str, devices: int):
    (found,) = read_program(
        "HloModule hand, num_partitions=8\n\nENTRY %main (a: f32[64]) -> f32[64] {\n"
        "  %a = f32[64]{0} parameter(0)\n"
        f"  ROOT %r = f32[64]{{0}} all-reduce(%a), channel_id=1, {attributes}, to_apply=%add\n}}\n"
    ).collectives
    assert found.bytes == 2 * (devices - 1) * 4 * 64 // devices


START = """HloModule hand, num_partitions=4

ENTRY %main (a: f32[64]) -> f32[64] {
  %a = f32[64]{0} parameter(0)
  %g = (f32[64]{0}, f32[256]{0}) all-gather-start(%a), replica_groups=[1,4]<=[4], dimensions={0}
  %h = f32[256]{0} all-gather-done(%g)
  %s = (f32[64]{0}, f32[64]{0}, u32[]) collective-permute-start(%a), source_target_pairs={{0,1}}
  ROOT %t = f32[64]{0} collective-permute-done(%s)
}
"""


def test_of_asynchronous_collectives_only_the_results_count_and_once():
    gather, permute = read_program(START).collectives
    assert (gather.results, gather.bytes) == (((256,),), 3 * 64 * 4)
    assert (permute.results, permute.bytes) == (((64,),), 64 * 4)


TPU = """HloModule hand, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}

%start (p: bf16[64,8]) -> (bf16[64,8], bf16[256,8], u32[]) {
  %p = bf16[64,8]{1,0} parameter(0)
  %g0 = bf16[256,8]{1,0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}, GATHER
  ROOT %s = (bf16[64,8]{1,0}, bf16[256,8]{1,0}, u32[]) custom-call(%g0), CALL="AsyncCollectiveStart"
}

%busy (p: bf16[64,8], q: bf16[256,8]) -> (bf16[64,8], bf16[256,8]) {
  %p.1 = bf16[64,8]{1,0} parameter(0)
  %q.1 = bf16[256,8]{1,0} parameter(1)
  %g1 = bf16[256,8]{1,0} all-gather(%p.1), replica_groups=[1,4]<=[4], dimensions={0}, GATHER
  ROOT %t = (bf16[64,8]{1,0}, bf16[256,8]{1,0}) tuple(%p.1, %g1)
}

%done (p: bf16[64,8], q: bf16[256,8]) -> bf16[256,8] {
  %p.2 = bf16[64,8]{1,0} parameter(0)
  %q.2 = bf16[256,8]{1,0} parameter(1)
  %g2 = bf16[256,8]{1,0} all-gather(%p.2), replica_groups=[1,4]<=[4], dimensions={0}, GATHER
  ROOT %d = bf16[256,8]{1,0} custom-call(%p.2, %q.2, %g2), CALL="AsyncCollectiveDone"
}

%all-reduce-scatter.3 (p: f32[64,8]) -> f32[16,8] {
  %p.3 = f32[64,8]{1,0} parameter(0)
  %r = f32[64,8]{1,0} all-reduce(%p.3), replica_groups=[1,4]<=[4], to_apply=%add
  %i = s32[] partition-id()
  %o = s32[] constant(0)
  ROOT %w = f32[16,8]{1,0} dynamic-slice(%r, %i, %o), dynamic_slice_sizes={16,8}
}

ENTRY %main (a: bf16[64,8], b: f32[64,8]) -> f32[16,8] {
  %a = bf16[64,8]{1,0} parameter(0)
  %b = f32[64,8]{1,0} parameter(1)
  %f = (bf16[64,8]{1,0}, bf16[256,8]{1,0}, u32[]) fusion(%a), kind=kCustom, calls=%start
  %f0 = bf16[64,8]{1,0} get-tuple-element(%f), index=0
  %f1 = bf16[256,8]{1,0} get-tuple-element(%f), index=1
  %h = (bf16[64,8]{1,0}, bf16[256,8]{1,0}) fusion(%f0, %f1), kind=kCustom, calls=%busy
  %h0 = bf16[64,8]{1,0} get-tuple-element(%h), index=0
  %h1 = bf16[256,8]{1,0} get-tuple-element(%h), index=1
  %e = bf16[256,8]{1,0} fusion(%h0, %h1), kind=kCustom, calls=%done
  ROOT %c = f32[16,8]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
}
""".replace("GATHER", 'frontend_attributes={chain_id="1"}').replace("CALL", "custom_call_target")


def test_the_forms_of_the_tpu_compiler():
    gather, scatter = read_program(TPU).collectives
    assert (gather.kind, gather.bytes) == ("all-gather", 3 * 64 * 8 * 2)  # once, not three times
    assert (scatter.kind, scatter.bytes) == ("reduce-scatter", 3 * 64 * 8 * 4 // 4)
