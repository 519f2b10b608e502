"""Silences messages of the libraries below JAX that users can do nothing about.

XLA asks for a bug report if a compilation takes long, and libtpu complains if there is no TPU.
They read these variables once, so the package sets them when it is imported; this has no effect if
JAX was imported before. Variables that are already set are kept, and with `DYNAMICRAFTER_DEBUG=1`
nothing is changed.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

DEBUG = "DYNAMICRAFTER_DEBUG"
"""The variable for debugging: libraries log everything, and tracebacks are shown."""

_LOGS = {"TF_CPP_MIN_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
# Without these, libtpu asks a cloud metadata server what machine this is.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def debugging(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Returns whether `DYNAMICRAFTER_DEBUG` is set."""
    return environment.get(DEBUG, "") not in ("", "0")


def quiet_libraries(
    environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> None:
    """Sets the variables, in a process that has not imported JAX.

    Args:
        environment: Where to set them.
        devices: Folder of the machine's devices, which has the chips of a TPU.
    """
    if debugging(environment):
        return
    has_tpu = any(devices.glob("accel*")) or (devices / "vfio").exists()
    for name, value in (_LOGS if has_tpu else _LOGS | _NO_TPU).items():
        environment.setdefault(name, value)
