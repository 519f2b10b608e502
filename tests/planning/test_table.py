"""The table's place in a document, and that its rows are plans that parse."""

import pytest

from dynamicrafter_jax.config import config_path
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.planning import table
from dynamicrafter_jax.planning.chips import parse_topology

GIB = 2**30


def plan(*, fits: bool) -> dict:
    step = {"name": "step", "fits": fits, "memory_bytes": {"total": 12 * GIB}}
    return {
        "topology": "v5e:4x4",
        "mesh": {"data": 1, "fsdp": 16, "sequence": 1, "tensor": 1},
        "usable_hbm_bytes": 15.75 * GIB,
        "fits": fits,
        "programs": [step],
        "summary": {"clips": 64, "ratio": 1.31, "frozen_flops": 752 * 10**12},
    }


def test_a_row_says_what_the_plan_does():
    *_, row = table.table({"train_512": plan(fits=True)}).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["`train_512`", "v5e:4x4", "fsdp 16", "64", "12.0 of 15.8"]
    assert cells[5:] == ["1.310", "", "752 TFLOP"]
    assert "**does not fit**" in table.table({"train_512": plan(fits=False)})


def test_only_what_is_between_the_marks_changes():
    document = f"before\n{table.START}\nold\n{table.END}\nafter\n"
    once = table.rewritten(document, "new")
    assert once == f"before\n{table.START}\n\nnew\n\n{table.END}\nafter\n"
    assert table.rewritten(once, "new") == once
    with pytest.raises(UserError, match="no lines"):
        table.rewritten("no marks", "new")


@pytest.mark.parametrize("name", table.ROWS)
def test_rows_name_configs_and_chips(name: str):
    split = (flag.removeprefix("--").partition("=") for flag in table.ROWS[name])
    flags = {flag: value for flag, _, value in split}
    assert config_path(flags["config"]).is_file()
    assert parse_topology(flags["topology"]).devices >= 1
    assert name.startswith(flags["mode"])
