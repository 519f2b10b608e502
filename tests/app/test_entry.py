"""`python -m dynamicrafter_jax.app` before there is a page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynamicrafter_jax.app import controls

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "app.md").read_text()

WITHOUT_THE_EXTRA = """
import runpy, sys
sys.modules |= dict.fromkeys(["fastapi", "gradio", "uvicorn"])
sys.argv = ["app"]
runpy.run_module("dynamicrafter_jax.app", run_name="__main__")
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )


def test_without_the_extra_one_line_says_what_to_install():
    done = run("-c", WITHOUT_THE_EXTRA)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == 'error: the page needs gradio: pip install "dynamicrafter-jax[app]"'


def test_flags_out_of_range_are_one_line_too():
    done = run("-m", "dynamicrafter_jax.app", "--port=70000")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "port" in line and "70000" in line


def test_only_the_page_imports_gradio():
    importers = [
        str(file.relative_to(ROOT / "dynamicrafter_jax"))
        for file in (ROOT / "dynamicrafter_jax").rglob("*.py")
        if re.search(r"^\s*(import|from) (gradio|uvicorn|fastapi)\b", file.read_text(), re.M)
    ]
    assert sorted(importers) == ["app/layout.py", "app/page.py", "app/serving.py"]


@pytest.mark.parametrize("name", controls.MODES)
def test_every_mode_is_documented(name):
    assert f"**{name}**" in DOCUMENT
