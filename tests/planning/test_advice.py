"""What a plan says to whoever it does not fit, and its sums."""

import pytest
import tiny
from ml_collections import ConfigDict

from dynamicrafter_jax.planning import plans
from dynamicrafter_jax.planning.programs import ForwardFlops

GIB = 2**30
REFUSAL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(120.00G) exceeds available HBM (15.75G)."
)
USED = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.21G of 15.75G hbm."


def program(name: str, *, fits: bool = False, refusal: str | None = None, **sizes: float) -> dict:
    memory = {key: int(size * GIB) for key, size in sizes.items()}
    if refusal:
        return {"name": name, "fits": False, "refusal": refusal, "held_bytes": memory}
    memory["total"] = sum(memory.values())
    return {"name": name, "fits": fits, "refusal": None, "memory_bytes": memory}


def config(**precision: str) -> ConfigDict:
    chosen = tiny.config("v")
    chosen.precision.update(precision)
    return chosen


def test_what_fits_needs_no_advice():
    assert plans.advice([program("step", fits=True, parameters=1)], config(), "train") == ""


@pytest.mark.parametrize(
    ("over", "mode", "first"),
    [
        (program("step", parameters=8, optimizer=9, temporaries=1), "train", "mesh.fsdp"),
        (program("step", parameters=1, temporaries=16), "train", "train.accumulation"),
        (program("step", refusal=REFUSAL, parameters=1), "train", "train.accumulation"),
        (program("step", refusal=REFUSAL, parameters=99), "train", "mesh.fsdp"),
        (program("step", refusal=USED, parameters=3, optimizer=9), "train", "mesh.fsdp"),
        (program("frozen networks", temporaries=16), "train", "sampling.vae_frames=1"),
        (program("denoise", parameters=12, temporaries=4), "sample", "mesh.fsdp"),
        (program("denoise", parameters=2, temporaries=14), "sample", "sequential_guidance=True"),
        (program("decode", parameters=1, temporaries=20), "sample", "sampling.vae_frames=1"),
    ],
)
def test_what_does_not_fit_gets_one_line_with_what_helps_most_first(
    over: dict, mode: str, first: str
):
    chosen = config(dtype="bfloat16", param_dtype="bfloat16")
    line = plans.advice([program("other", fits=True, parameters=1), over], chosen, mode)
    assert "\n" not in line and len(line) < 400
    assert line.startswith(f"{over['name']} does not fit: ")
    assert first in line.split("; try ")[1].split(", or ")[0]


def test_float32_is_named_before_anything_smaller():
    over = program("denoise", parameters=12, temporaries=4)
    assert "param_dtype=bfloat16" in plans.advice([over], config(), "sample")


def test_the_compilers_own_numbers_are_in_the_line():
    line = plans.advice([program("decode", refusal=REFUSAL)], config(), "sample")
    assert "(120.00G) exceeds available HBM (15.75G)" in line


FORWARD = ForwardFlops(unet=1000, projector=50)


def measured(name: str, flops: int) -> dict:
    return {"name": name, "refusal": None, "flops": flops, "flops_a_device": flops // 4}


def test_the_unets_part_of_a_step_leaves_out_what_else_runs():
    chosen = config()
    chosen.train.update(batch_size=8, accumulation=2)
    frozen = measured("frozen networks", 2_000)
    found = plans.training_summary([measured("step", 40_000), frozen], FORWARD, chosen)
    assert found["analytic_flops"] == 3 * 8 * 1000
    assert found["frozen_flops"] == 2 * 2_000  # once for each part of the batch
    assert found["unet_flops"] == 40_000 - 4_000 - 3 * 8 * 50
    assert found["ratio"] == pytest.approx(34_800 / 24_000)


def test_clips_that_only_fill_up_a_mesh_are_not_needed():
    found = plans.sampling_summary(measured("denoise", 8_000), FORWARD, clips=3, passes=2)
    assert found["ratio"] == pytest.approx(8_000 / 6_000)
    assert found["share_a_device"] == pytest.approx(2_000 / 6_000)


def test_of_what_is_refused_only_the_need_is_known():
    refused = program("denoise", refusal=REFUSAL)
    found = plans.sampling_summary(refused, FORWARD, clips=1, passes=2)
    assert found == {"clips": 1, "analytic_flops": 2000}
    steps = [measured("step", 9_000), refused]
    assert "ratio" not in plans.training_summary(steps, FORWARD, config())
