import jax
import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import distributed

VARIABLES = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` is called with, in an environment that says nothing."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    for name in VARIABLES:
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_one_process_joins_nobody(joined):
    distributed.initialize()
    assert joined == []


def test_flags_win_over_the_environment(joined, monkeypatch):
    for name, value in zip(VARIABLES, ("10.0.0.1:1234", "4", "2"), strict=True):
        monkeypatch.setenv(f"JAX_{name}", value)
    distributed.initialize()
    distributed.initialize(process_id=0)
    assert joined == [("10.0.0.1:1234", 4, 2), ("10.0.0.1:1234", 4, 0)]


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
        {"TPU_WORKER_HOSTNAMES": "host-0,host-1"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "host-0"},
    ],
)
def test_clusters_are_recognised(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert joined == [()]


def test_one_task_of_slurm_and_one_host_of_tpus_are_alone(joined, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    distributed.initialize()
    assert joined == []
    distributed.initialize(multihost=True)
    assert joined == [()]


def test_half_of_what_is_needed_is_refused(joined, monkeypatch):
    with pytest.raises(UserError, match="also need --coordinator_address and --process_id"):
        distributed.initialize(num_processes=2)
    with pytest.raises(UserError, match="process_id is 2: choose from 0 to 1"):
        distributed.initialize("localhost:1", 2, 2)
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID is 'first': it must be a whole number"):
        distributed.initialize("localhost:1", 2)
    assert joined == []
