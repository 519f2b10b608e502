"""What some tests need besides the package."""

import os
from importlib.util import find_spec

import pytest


def needed(what: str, there: bool, how: str) -> None:
    """Skips a test where something is missing; where all must run, that is a failure."""
    if not there:
        message = f"{what} is not installed: {how}"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)


def module_needed(what: str, name: str, extra: str) -> None:
    """Does the same for a module that comes with an extra of the package."""
    needed(what, find_spec(name) is not None, f'pip install "dynamicrafter-jax[{extra}]"')
