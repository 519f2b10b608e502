"""Names of topologies, and the figures of chips against each other."""

import math

import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.planning.chips import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("name", "chip", "shape", "slices", "devices"),
    [
        ("v5e:4x4", "v5e", (4, 4), 1, 16),
        ("v5e:1x1", "v5e", (1, 1), 1, 1),
        ("v6e:2x4", "v6e", (2, 4), 1, 8),
        ("v5e-16", "v5e", (4, 4), 1, 16),
        ("v5e-8", "v5e", (2, 4), 1, 8),
        ("v5litepod-64", "v5e", (8, 8), 1, 64),
        ("2*v5e:4x4", "v5e", (4, 4), 2, 32),
        ("v4:2x2x1", "v4", (2, 2, 1), 1, 4),
        ("v5p:2x2x2", "v5p", (2, 2, 2), 1, 8),
        ("tpu7x:2x2x1", "v7x", (2, 2, 1), 1, 8),  # whose chips are two devices
    ],
)
def test_names(name: str, chip: str, shape: tuple[int, ...], slices: int, devices: int):
    found = parse_topology(name)
    assert (found.chip.name, found.shape, found.slices) == (chip, shape, slices)
    assert found.devices == devices
    assert parse_topology(found.name) == found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v9:2x2", "v4, v5e, v5p, v6e, v7x"),
        ("v5e", "v5e:4x4"),
        ("v5e:4x4x4", "2 dimensions"),
        ("v5p:4x4", "v5p:4x4x4"),
        ("v5p-8", "counts cores"),
        ("v5e:0x4", "2 dimensions"),
        ("v5e-0", "v5e:4x4"),
        ("0*v5e:4x4", "v5e:4x4"),
        ("four chips", "v5e:4x4"),
    ],
)
def test_names_that_are_none_say_what_to_write(name: str, told: str):
    with pytest.raises(UserError, match=told) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_figures_are_of_a_device(chip):
    assert 0.95 * chip.hbm < chip.usable_hbm < chip.hbm
    assert math.isclose(chip.hbm % 2**30, 0)
