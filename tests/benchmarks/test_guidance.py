"""What guidance is chosen by: its table, and its numbers as people write them."""

import benchmark_modules
import pytest

from dynamicrafter_jax.errors import UserError

(guidance,) = benchmark_modules.load("guidance")


def test_the_table_has_a_row_for_every_setting():
    measured = {"motion": 0.5, "single": 0.75, "first_frame_db": 28.0, "last_frame_db": 20.5}
    measured |= {"sharpness": 0.9, "distance": 1.25}
    measured |= {"guidance_rescale": 0.7, "guidance_stop": 0.5}
    found = [{"guidance_scale": scale, **measured} for scale in (1.0, 7.5)]
    _, _, *rows = guidance.table(found).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    rest = ["0.7", "50%", "50.0%", "75.0%", "28.00 dB", "20.50 dB", "90%", "1.25"]
    assert cells == [["1", *rest], ["7.5", *rest]]


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="--scales is 1,high: give numbers"):
        guidance._numbers("scales", ["1", "high"])
