"""A browser for the page."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from needed import module_needed, needed


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window, by playwright.

    It is of a module, since playwright keeps a loop of events running, in which others can't run.
    """
    path = shutil.which("chromium")
    needed("Chromium", path is not None, "apt-get install chromium")
    module_needed("playwright", "playwright", "dev")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
