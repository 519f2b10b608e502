"""Takes the picture of the web page in docs/app.md.

    python docs/images/make_app_screenshot.py

Needs gradio, playwright and Chromium.
"""

import io
import queue
import shutil
import tempfile
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dynamicrafter_jax.app import serving
from dynamicrafter_jax.app.catalogue import ModelCatalogue, load_model

PICTURE = Path(__file__).parent / "app.png"
WIDTH, HEIGHT = 1280, 900
MAX_BYTES = 200_000
PATIENCE = 600_000  # milliseconds; the first video compiles


def open_page(workdir: Path) -> str:
    """Serves the page in a thread that ends with this process, and returns its address."""
    addresses: queue.Queue[str] = queue.Queue()
    catalogue = ModelCatalogue(["demo"], load=load_model)
    site = serving.Site(port=0, workdir=workdir)
    threading.Thread(
        target=serving.serve, args=(catalogue, site, addresses.put), daemon=True
    ).start()
    return addresses.get(timeout=PATIENCE / 1000)


def make_videos(page: Page) -> None:
    """Makes the videos of all examples, and shows the first again."""
    for example in (2, 1, 0):
        page.click(f"#examples tbody tr >> nth={example}")
        page.wait_for_selector("#image img")
        page.wait_for_timeout(1000)
        page.click("#generate")
        page.wait_for_function(
            f"document.querySelectorAll('#gallery .thumbnail-item').length == {3 - example}"
        )
    page.wait_for_function("document.querySelector('#video video').readyState >= 3")
    # In the midst of the movement, and without the controls that a mouse calls up.
    page.evaluate(
        "(v => { v.pause(); v.currentTime = v.duration / 2 })"
        "(document.querySelector('#video video'))"
    )
    page.mouse.move(2, 2)
    page.wait_for_timeout(1500)


def optimised(png: bytes) -> bytes:
    """Returns the same picture in as many colours as fit into `MAX_BYTES`."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        picture.quantize(colours).save(buffer, "PNG", optimize=True)
        if buffer.tell() < MAX_BYTES:
            return buffer.getvalue()
    raise ValueError(f"{PICTURE} would be larger than {MAX_BYTES} bytes")


def main() -> None:
    """Serves, drives and photographs the page."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        address = open_page(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.wait_for_selector("#generate")
        make_videos(page)
        PICTURE.write_bytes(optimised(page.screenshot(full_page=True)))
        browser.close()


if __name__ == "__main__":
    main()
