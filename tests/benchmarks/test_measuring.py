"""What the benchmarks of speed make of their measurements."""

from pathlib import Path

import benchmark_modules
import jax
import numpy as np
import pytest
import tiny

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import abstract_models

growth, random_arguments, sampling, timing = benchmark_modules.load(
    "growth", "random_arguments", "sampling", "timing"
)


def test_documents_are_rewritten_between_marks(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    timing.write_docs("a", "new", document)
    assert document.read_text() == "before\n<!-- a -->\n\nnew\n\n<!-- end of a -->\nafter\n"
    with pytest.raises(UserError, match="<!-- b -->"):
        timing.write_docs("b", "new", document)


def test_tables_are_aligned():
    assert timing.markdown(["a", "b"], [["long", "1"]]) == (
        "| a    | b |\n| ---- | - |\n| long | 1 |"
    )


def test_functions_take_turns():
    calls = []
    found = timing.alternate({name: lambda name=name: calls.append(name) for name in "xy"}, 3)
    assert {name: len(seconds) for name, seconds in found.items()} == {"x": 3, "y": 3}
    assert all(second > 0 for seconds in found.values() for second in seconds)


def test_utilisation_is_of_all_devices():
    found = timing.utilisation(flops=8e12, seconds=2.0, measured_peak=4e12, devices=2)
    assert found["tflops_per_device"] == 2 and found["utilisation"] == 0.5


@pytest.mark.parametrize(
    ("output", "seconds"), [("noise 7\nseconds: 12.5", 12.5), ("4.2 s", 4.2), ("x 1e-3", 1e-3)]
)
def test_another_program_tells_its_seconds(output, seconds):
    assert sampling.run_command(f"printf '{output}'") == seconds


def test_another_program_is_timed_if_it_tells_nothing():
    assert 0.2 < sampling.run_command("sleep 0.2") < 5
    with pytest.raises(UserError, match="status 3"):
        sampling.run_command("exit 3")


def test_exponents_are_those_of_power_laws():
    rows = [
        {
            "varied": kind,
            "factor": factor,
            "shown": {"seconds": 3 * factor, "bytes": 5 * factor**2, "flops": 7.0},
        }
        for kind, factors in growth.FACTORS.items()
        for factor in factors
    ]
    for found in growth.exponents(rows).values():
        assert np.allclose([found[name] for name in ("seconds", "bytes", "flops")], [1, 2, 0])


def test_random_parameters_let_every_part_act():
    boxed = abstract_models(tiny.models("v"))["projector"]
    params = random_arguments.random_params(boxed)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(params))
    kernel = params["ff_0"]["in"]["kernel"]
    assert np.isclose(kernel.std() * np.sqrt(kernel.shape[0]), 1, rtol=0.05)
    assert len(np.unique(kernel)) > kernel.size * 0.9


def test_products_of_a_pass_are_counted():
    def products(frames: int) -> int:
        config = load_config(Path(__file__).parents[1] / "configs" / "micro.py")
        config.sampling.num_frames = frames
        return sampling.unet_flops(config)

    assert 1.9 < products(4) / products(2) < 2.1
