"""Many processes as one: who they are comes from flags, from the environment, or is found out."""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp

from dynamicrafter_jax.errors import UserError


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    multihost: bool = False,
) -> None:
    """Joins the other processes of a run, if there are any; call it before anything of JAX.

    Each argument left out is taken from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` or
    `JAX_PROCESS_ID`. With neither, SLURM jobs of several tasks, MPI runs and TPU pods that GKE
    started are recognised by the environment, and anything else is a run of one process.

    Args:
        coordinator_address: Host and port of process 0, such as "10.0.0.1:1234".
        num_processes: How many there are.
        process_id: Which this is, from 0.
        multihost: Whether JAX is to find the others by itself, where the environment does not
            tell: on the workers of a TPU pod that was made as a queued resource.

    Raises:
        UserError: If only some of the three are known, or they do not fit together.
    """
    environment = os.environ
    coordinator_address = coordinator_address or environment.get("JAX_COORDINATOR_ADDRESS")
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": _number("JAX_NUM_PROCESSES", num_processes),
        "process_id": _number("JAX_PROCESS_ID", process_id),
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if multihost or _in_cluster():
            jax.distributed.initialize()
        return
    if missing:
        raise UserError(
            f"several processes need --{' and --'.join(missing)} too (or JAX_"
            f"{' and JAX_'.join(name.upper() for name in missing)} in the environment)"
        )
    count, number = given["num_processes"], given["process_id"]
    if not 0 <= number < count:
        raise UserError(f"process_id is {number}: choose from 0 to {count - 1}, num_processes - 1")
    jax.distributed.initialize(coordinator_address, count, number)


def wait_for_all(place: str) -> None:
    """Waits until every process of the run is here; some compile longer than others.

    Args:
        place: A name for it, given once in a run.

    Raises:
        RuntimeError: If a process did not come within an hour.
    """
    ocp.multihost.get_barrier_sync_fn()(key=place, timeout_ms=3_600_000)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends a process that meets a `UserError` or Ctrl-C, if it is one of several.

    It would otherwise wait for the others when it exits, and they for it in their next step.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        stopped = isinstance(error, KeyboardInterrupt)
        sys.stderr.write("stopped by Ctrl-C\n" if stopped else f"error: {error}\n")
        sys.stderr.flush()
        os._exit(130 if stopped else 2)


def _number(variable: str, given: int | None) -> int | None:
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    if not text.isdecimal():
        raise UserError(f"{variable} is {text!r}: it must be a whole number")
    return int(text)


def _in_cluster() -> bool:
    """Whether the environment says that there are other processes, and JAX will find them."""
    environment = os.environ
    return (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or ("SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") != "1")
        or "OMPI_MCA_orte_hnp_uri" in environment
    )
