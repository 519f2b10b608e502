"""The server of the page, and the folder for all of its files."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fastapi
import gradio as gr
import uvicorn

from dynamicrafter_jax.app.catalogue import ModelCatalogue
from dynamicrafter_jax.app.gate import Gate
from dynamicrafter_jax.app.layout import css, theme
from dynamicrafter_jax.app.page import build_page
from dynamicrafter_jax.app.results import ResultStore, UploadStore
from dynamicrafter_jax.app.studio import Studio
from dynamicrafter_jax.errors import UserError

# Besides its files, a request has a few lines about each of them.
_AROUND_FILES = 2**16
_LARGE_UPLOADS_KEPT = 50  # of the largest size
_UPLOADS_KEPT = 1000  # of any size


@dataclass(frozen=True)
class Site:
    """The page's address and limits.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        workdir: Folder for all files; None for a new one, which is removed at the end.
        max_upload: Limit on a picture, in bytes.
        keep_results: How many videos are kept, over all users.
        queue_size: How many requests may wait.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    workdir: Path | None = None
    max_upload: int = 20_000_000
    keep_results: int = 100
    queue_size: int = 20

    @property
    def only_local(self) -> bool:
        """Whether the page can be reached only from this machine."""
        return self.host in ("127.0.0.1", "localhost", "::1")


def serve(catalogue: ModelCatalogue, site: Site, say: Callable[[str], None]) -> None:
    """Serves the page until SIGINT or SIGTERM.

    Args:
        catalogue: The models; the first is loaded before the page opens.
        site: The page's address and limits.
        say: Called with the page's address when it is open.

    Raises:
        UserError: The address or the folder can't be used, or the first model can't be loaded.
    """
    with listening(site.host, site.port) as listener, own_folder(site.workdir) as folder:
        application = build_application(catalogue, site, folder)
        address = f"http://{_printed(site.host)}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            application,
            log_level="warning",
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=1,  # open pages would keep their connections for ever
        )
        say(address)
        _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shuts down without a traceback for each page that is still open."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def build_application(catalogue: ModelCatalogue, site: Site, folder: Path) -> Gate:
    """Returns the whole page as an ASGI application.

    Args:
        catalogue: The models.
        site: The page's limits.
        folder: The folder from `own_folder`, within its context.

    Raises:
        UserError: The first model can't be loaded.
    """
    served = folder / "served"
    results = ResultStore(served / "results", site.keep_results)
    blocks = build_page(Studio(catalogue, results), max_upload=site.max_upload)
    blocks.queue(max_size=site.queue_size, api_open=False)
    # gradio checks uploads only if this is set, and only `launch` sets it.
    blocks.has_launched = True
    application = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=site.max_upload,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=css(),
    )
    uploads = UploadStore(
        served, max_bytes=_LARGE_UPLOADS_KEPT * site.max_upload, max_files=_UPLOADS_KEPT
    )
    return Gate(
        application,
        served=served,
        max_upload=site.max_upload + _AROUND_FILES,
        only_local=site.only_local,
        before_upload=uploads.trim,
    )


@contextlib.contextmanager
def own_folder(workdir: Path | None) -> Iterator[Path]:
    """Gives the folder for all files, and makes every library write there.

    Args:
        workdir: The folder; None for a new one, which is removed at the end.

    Raises:
        UserError: The folder can't be made or written to.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="dynamicrafter-")) if workdir is None else workdir
        folder = folder.expanduser().resolve()
        served, temporary = folder / "served", folder / "temporary"
        served.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{workdir or tempfile.gettempdir()} can't be written: {error.strerror}; give another "
            "folder with --workdir"
        ) from error
    own = {
        "GRADIO_TEMP_DIR": str(served),
        "GRADIO_EXAMPLES_CACHE": str(served),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "MPLBACKEND": "agg",  # gradio loads matplotlib, which might look for a display and fonts
        "MPLCONFIGDIR": str(temporary),
        "TMPDIR": str(temporary),
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    directory, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        yield folder
    finally:
        tempfile.tempdir = directory
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(temporary if workdir is not None else folder, ignore_errors=True)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Gives a listening socket.

    Raises:
        UserError: The address does not belong to this machine, or is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"can't listen on {_printed(host)}:{port} ({reason}): give another --port, or "
            "--host=127.0.0.1"
        ) from error
    with listener:
        yield listener


def _printed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
