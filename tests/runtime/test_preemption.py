"""A run that is asked to stop does so after a step, all its processes after the same one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamicrafter_jax.runtime.preemption import Preemption
from dynamicrafter_jax.training.checkpoints import Checkpoints
from dynamicrafter_jax.training.state import TrainState

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # a signal is dealt with between two steps of the interpreter


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_raises_a_flag(number: signal.Signals):
    with Preemption() as preemption:
        assert not preemption.requested(1)
        send(number)
        assert preemption.requested(2)
        assert preemption.requested(3)


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), Preemption() as preemption:
        send(signal.SIGINT)
        assert preemption.requested(1)
        send(signal.SIGINT)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    for number in (None, *SIGNALS):
        with pytest.raises(ZeroDivisionError), Preemption():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            if number is not None:
                send(number)
            raise ZeroDivisionError
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_later_watch_knows_nothing_of_an_earlier_one():
    preemption = Preemption()
    with preemption:
        send(signal.SIGTERM)
    with preemption:
        assert not preemption.requested(1)


def test_several_processes_need_the_service_of_jax(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("jax._src.distributed.global_state.client", object())
    with (
        pytest.raises(ValueError, match="several processes can't stop together: unset JAX_EN"),
        Preemption() as preemption,
    ):
        preemption.requested(1)


PROCESS = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.checkpoints import Checkpoints
from dynamicrafter_jax.runtime.preemption import Preemption
from dynamicrafter_jax.training.state import TrainState
from dynamicrafter_jax.training.workdir import claim_workdir

address, process, workdir = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(address, 2, int(process))
of_seed = lambda seed: ConfigDict({"train": {"seed": seed}})
claim_workdir(workdir, of_seed(1))
mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
whole, split = (NamedSharding(mesh, PartitionSpec(*names)) for names in ((), ("data",)))
params = {"kernel": np.arange(24, dtype=np.float32).reshape(8, 3), "scale": np.float32(0)}
frozen = {"vae": sharding.place(np.arange(8, dtype=np.float32), split)}
state = TrainState(np.int32(0), params, {}, optax.adam(1e-3).init(params), params)
state = jax.tree.map(lambda leaf: sharding.place(leaf, split if leaf.ndim else whole), state)
add_one = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
as_shapes = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
with Checkpoints(workdir, keep_last=2) as checkpoints, Preemption() as preemption:
    first = checkpoints.latest_step()
    if first is None:
        checkpoints.save_frozen(frozen)
    else:
        state = checkpoints.restore(jax.tree.map(as_shapes, state))
        frozen = checkpoints.restore_frozen(jax.tree.map(as_shapes, frozen))
    for step in range(int(state.step) + 1, 100_000):
        state = add_one(state)
        time.sleep(0.01 * (1 + int(process)))
        print(step - (first or 0), flush=True)
        stops = preemption.requested(step)
        if stops or step % 7 == 0:
            checkpoints.save(state, wait=stops)
        if stops:
            break
refusals = []
for folder, seed in ((workdir, 2 + int(process)), (f"{workdir}/of_process_{process}", 1)):
    try:
        claim_workdir(folder, of_seed(seed))
    except UserError as error:
        refusals.append(str(error))
local = frozen["vae"].addressable_shards[0].data
said = {"first": first, "stopped": step, "frozen": float(local.sum()), "refusals": refusals}
print(json.dumps(said), flush=True)
"""


def run_two(workdir: Path, number: signal.Signals, process: int) -> list[dict[str, Any]]:
    """Runs two processes, sends one a signal in mid-run, and returns what they said last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index), str(workdir)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        output = started[process].stdout
        assert output is not None
        while (line := output.readline()) != "10\n":
            assert line, "it ended before step 10"
        started[process].send_signal(number)
        said = [process.communicate(timeout=120)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0]
    finally:
        for child in started:
            child.kill()
    return [json.loads(text[text.index("{") :].splitlines()[0]) for text in said]


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(tmp_path: Path):
    """Whichever is asked; and what two have saved one goes on from, and the other way round."""
    one, other = run_two(tmp_path, signal.SIGTERM, 1)
    step = one["stopped"]
    assert other["stopped"] == step >= 10 and one["first"] is None
    for process, said in enumerate((one, other)):
        another, split = said["refusals"]
        assert "holds a run with another config: train.seed 1 -> 2; restore" in another
        assert (
            f"of_process_{process} is not the same folder for all processes (1 can't see" in split
        )
    params = {"kernel": jnp.arange(24.0).reshape(8, 3), "scale": jnp.float32(0)}
    start = TrainState(jnp.int32(0), params, {}, optax.adam(1e-3).init(params), params)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), start
    )
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        state = checkpoints.restore(shapes)
        expected = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), start)
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        state = jax.tree.map(lambda leaf: leaf + jnp.asarray(100, leaf.dtype), state)
        checkpoints.save(state)
    one, other = run_two(tmp_path, signal.SIGINT, 0)
    assert one["first"] == other["first"] == step + 100
    assert one["stopped"] == other["stopped"] >= step + 110
    assert [one["frozen"], other["frozen"]] == [0 + 1, 4 + 5]
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        assert checkpoints.latest_step() == one["stopped"]
        kernel = checkpoints.restore(shapes).params["kernel"]
        np.testing.assert_array_equal(kernel, params["kernel"] + one["stopped"])
