"""What the libraries below JAX say on stderr: nothing that its reader can do nothing about.

XLA asks for a bug report where a compilation takes long, and libtpu complains where there is no
TPU. They read these variables once, so the package sets them when it is imported; it has no say
where JAX was imported before it. What is set already stays, and with `DYNAMICRAFTER_DEBUG=1` all
stays as it is.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

DEBUG = "DYNAMICRAFTER_DEBUG"
"""The variable of who looks for a fault: libraries say all, and tracebacks are shown."""

_LOGS = {"TF_CPP_MIN_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
# Without them, libtpu asks a server of its cloud what machine this is.
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
        environment: Where to.
        devices: Folder of the machine's devices, among them the chips of a TPU.
    """
    if debugging(environment):
        return
    has_tpu = any(devices.glob("accel*")) or (devices / "vfio").exists()
    for name, value in (_LOGS if has_tpu else _LOGS | _NO_TPU).items():
        environment.setdefault(name, value)
