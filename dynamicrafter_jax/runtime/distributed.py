"""Runs of several processes, described by flags or the environment, or discovered by JAX."""

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
    """Joins the other processes of a run, if there are any; call it before using JAX.

    Each missing argument is taken from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` or
    `JAX_PROCESS_ID`. If none of the three is known, SLURM jobs of several tasks, MPI runs and TPU
    pods started by GKE are recognised by their environment; anything else is a run of one process.

    Args:
        coordinator_address: Host and port of process 0, such as "10.0.0.1:1234".
        num_processes: How many processes there are.
        process_id: Which of them this is, from 0.
        multihost: Whether JAX should find the other processes even if the environment does not
            reveal them: on the workers of a TPU pod that was created as a queued resource.

    Raises:
        UserError: Only some of the three are known, or they do not fit together.
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
            f"several processes also need --{' and --'.join(missing)} (or JAX_"
            f"{' and JAX_'.join(name.upper() for name in missing)} in the environment)"
        )
    count, number = given["num_processes"], given["process_id"]
    if not 0 <= number < count:
        raise UserError(f"process_id is {number}: choose from 0 to {count - 1}, num_processes - 1")
    jax.distributed.initialize(coordinator_address, count, number)


def wait_for_all(place: str) -> None:
    """Waits until every process of the run gets here; some take longer to compile than others.

    Args:
        place: A name for the place, used once in a run.

    Raises:
        RuntimeError: A process did not get here within an hour.
    """
    ocp.multihost.get_barrier_sync_fn()(key=place, timeout_ms=3_600_000)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends the process at once on a `UserError` or Ctrl-C, if it is one of several.

    Otherwise it would wait for the others on exit, and they for it in their next step.
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
    """Returns whether the environment shows that there are other processes, which JAX can find."""
    environment = os.environ
    return (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or ("SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") != "1")
        or "OMPI_MCA_orte_hnp_uri" in environment
    )
