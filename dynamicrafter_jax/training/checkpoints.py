"""The checkpoints of a run: each whole or absent, and written while training continues.

    WORKDIR/checkpoints/STEP/{params,opt_state,ema}    the state after STEP steps; ema may be absent
    WORKDIR/frozen                                     the parameters that do not train, once

Each of these is a stored tree. A step is seen only when it is complete: on a file system it is
then renamed to its place, in a bucket a last file says so.
"""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.state import TrainState, create_state
from dynamicrafter_jax.weights import stored
from dynamicrafter_jax.weights.tensors import list_names
from dynamicrafter_jax.weights.warm_start import Start, open_start

FOLDER = "checkpoints"
FROZEN = "frozen"

_ITEMS = ("params", "opt_state", "ema")


class Checkpoints:
    """Saves and restores the state of a run; every process of it makes one and calls it alike.

    What goes wrong while a checkpoint is written in the background is raised as a `UserError` by
    the next call of `check`, `wait`, `save`, `restore` or `close`; the checkpoints before it stay.
    The process should end then: some of what failed may still be on its way to the disk.
    """

    def __init__(
        self, workdir: epath.PathLike, *, keep_last: int, keep_every: int | None = None
    ) -> None:
        """Finds the steps that are there, and changes nothing on disk.

        Args:
            workdir: Folder of the run, local or remote.
            keep_last: Newest checkpoints kept, 1 or more.
            keep_every: Checkpoints at multiples of this many steps are kept for good; None keeps
                no others.

        Raises:
            UserError: If the folder can't be read.

        Warns:
            UserWarning: There are unfinished steps, which are ignored.
        """
        root = stored.absolute(workdir)
        self._directory = root / FOLDER
        self._frozen = root / FROZEN
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._steps, unfinished = stored.scan(self._directory)
        if unfinished and jax.process_index() == 0:
            names = list_names(path.name for path in unfinished)
            warnings.warn(
                f"{self._directory} holds what was never finished, and is ignored: {names}",
                stacklevel=2,
            )
        if jax.process_count() > 1:
            # A file system may show the others something else.
            latest = int(multihost_utils.broadcast_one_to_all(np.int32(_last(self._steps, -1))))
            self._steps = [step for step in self._steps if step < latest]
            self._steps += [latest] if latest >= 0 else []
        self._current: int | None = None  # the step that this object saved or restored last
        self._pending: tuple[int, Future[None]] | None = None
        self._threads = ThreadPoolExecutor(1, "checkpoints")
        stored.drop_duplicate_logs()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except UserError:
            if error is None:
                raise

    def latest_step(self) -> int | None:
        """Returns the newest whole checkpoint, None without any."""
        return _last(self._steps, None)

    def save(self, state: TrainState, *, wait: bool = False) -> bool:
        """Saves all of `state` but its frozen parameters.

        Returns as soon as the state is copied to host memory, so that its buffers may be donated;
        the rest happens in the background. An earlier save is waited for. The step that this
        object saved or restored last is not saved again.

        Args:
            state: The state; its `step` names the checkpoint.
            wait: Whether to return only when the checkpoint is whole.

        Returns:
            Whether it had to be saved.

        Raises:
            UserError: If an earlier checkpoint or this one could not be written, or a later one is
                there.
        """
        self.wait()
        step = int(state.step)
        if step == self._current:
            return False
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise UserError(
                f"{self._directory} holds step {latest} already, so step {step} can't be saved: "
                f"resume from step {latest}, or delete the folders of the steps from {step} on"
            )
        trees = {name: getattr(state, name) for name in _ITEMS}
        items = {
            name: stored.to_save(tree) for name, tree in trees.items() if jax.tree.leaves(tree)
        }
        path = self._path(step)

        def list_files() -> None:
            for name in items:
                stored.list_files(stored.unfinished_path(path) / name)

        # One that failed remembers it, so each save has its own.
        writer = stored.make_writer(list_files, *items)
        try:
            if jax.process_index() == 0:
                for unfinished in stored.scan(self._directory)[1]:
                    stored.remove_unfinished(unfinished)
            writer.save(path, args=ocp.args.Composite(**items))
        except jax.errors.JaxRuntimeError:  # such as a device that fails, or a process that is gone
            raise
        except Exception as error:  # of Orbax, of TensorStore or of the file system
            raise self._not_saved(step, error) from error
        self._current = step
        self._pending = step, self._threads.submit(self._finish, step, writer)
        if wait:
            self.wait()
        return True

    def check(self) -> None:
        """Raises `UserError` if a save has failed; does not wait, so it may be called each step."""
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until what `save` began is whole, and what need not be kept is removed.

        Raises:
            UserError: If that failed.
        """
        if self._pending is None:
            return
        step, finished = self._pending
        self._pending = None
        error = finished.exception()
        if isinstance(error, UserError):
            raise error
        if error is not None:
            self._current = None
            raise self._not_saved(step, error) from error

    def close(self) -> None:
        """Waits as `wait` does, and ends the background work."""
        try:
            self.wait()
        finally:
            self._threads.shutdown()

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """Reads a checkpoint, all of it or nothing.

        Args:
            abstract: The state as `jax.ShapeDtypeStruct` with shardings, on any mesh and any number
                of processes; its frozen parameters are returned as they are.
            step: Which; by default the newest.

        Raises:
            UserError: If there is none, it is damaged, or it does not fit `abstract`; the message
                lists what does not.
        """
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None or step not in self._steps:
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            here = list_names(str(step) for step in self._steps) or "none"
            raise UserError(f"{self._directory} holds {which}: there is {here}")
        path = self._path(step)
        trees = {name: getattr(abstract, name) for name in _ITEMS}
        try:
            _check_fit(path, trees)
            found = {
                name: stored.read(path / name, tree)
                for name, tree in trees.items()
                if jax.tree.leaves(tree)
            }
        except stored.Damaged as error:
            earlier = [other for other in self._steps if other < step]
            way = f"to resume from step {earlier[-1]}" if earlier else "to start from the beginning"
            raise UserError(
                f"{path} is damaged ({error}): copy it again, or delete that folder {way}"
            ) from error
        self._current = step
        placed = sharding.place(np.asarray(step, np.int32), abstract.step.sharding)
        return abstract._replace(step=placed, **found)

    def save_frozen(self, frozen: Mapping[str, PyTree[Array]]) -> None:
        """Writes the frozen parameters, before the first checkpoint; returns when they are there.

        What a run that never came to a checkpoint left is replaced.

        Raises:
            UserError: If there are checkpoints already, or they can't be written.
        """
        if self._steps:
            raise UserError(
                f"{self._frozen} belongs to the checkpoints in {self._directory}: "
                "resume from them, or give a new workdir"
            )
        if not jax.tree.leaves(frozen):
            return

        def list_files() -> None:
            stored.list_files(stored.unfinished_path(self._frozen))

        try:
            if jax.process_index() == 0:
                self._frozen.rmtree(missing_ok=True)
            with stored.make_writer(list_files) as writer:
                writer.save(self._frozen, args=stored.to_save(frozen))
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:
            reason = stored.reason(error)
            raise UserError(f"{self._frozen} could not be written: {reason}") from error

    def restore_frozen(self, abstract: Mapping[str, PyTree]) -> dict[str, PyTree[Array]]:
        """Reads what `save_frozen` wrote, all of it or nothing.

        Args:
            abstract: The same tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
            UserError: If it is absent, damaged, or does not fit.
        """
        if not jax.tree.leaves(abstract):
            return dict(abstract)
        try:
            if misfit := stored.misfit(self._frozen, abstract):
                raise UserError(f"{self._frozen} does not fit the config: {misfit}")
            return dict(stored.read(self._frozen, abstract))
        except stored.Damaged as error:
            raise UserError(
                f"{self._frozen} is damaged ({error}): copy it again, "
                "or take that folder of a new run of the same config"
            ) from error

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _finish(self, step: int, writer: ocp.AsyncCheckpointer) -> None:
        """Waits for the writer, then removes what need not be kept; runs in the background."""
        writer.close()  # which waits
        self._steps.append(step)
        for old in surplus(self._steps, self._keep_last, self._keep_every):
            self._steps.remove(old)
            if jax.process_index() == 0:
                try:
                    stored.remove(self._path(old))
                except FileNotFoundError:  # someone was faster
                    continue
                except OSError as error:
                    reason = stored.reason(error)
                    raise UserError(f"{self._path(old)} can't be removed: {reason}") from error

    def _not_saved(self, step: int, error: BaseException) -> UserError:
        latest = self.latest_step()
        start = "the beginning" if latest is None else f"step {latest}"
        return UserError(
            f"{self._path(step)} could not be saved ({stored.reason(error)}): "
            f"fix that and start again, to resume from {start}"
        )


def start_or_restore(
    config: ConfigDict,
    abstract: TrainState,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    key: Key[Array, ""],
) -> tuple[TrainState, Start | None]:
    """Returns the state of the newest checkpoint, or what training starts from.

    Args:
        config: Its section `init` says what training starts from.
        abstract: See `abstract_state`.
        optimizer: See `optimizer.make_optimizer`.
        checkpoints: Of the run.
        key: Of parameters that nothing gives.

    Returns:
        The state, and where its parameters come from, None if it was restored. Nothing is written:
        the frozen parameters of a new state are still to be saved.

    Raises:
        UserError: If a checkpoint or a file can't be used.
    """
    if checkpoints.latest_step() is not None:
        frozen = checkpoints.restore_frozen(abstract.frozen)
        return checkpoints.restore(abstract._replace(frozen=frozen)), None
    with open_start(config, config.init, key) as start:
        return create_state(abstract, start.leaf, optimizer), start


def find_step(workdir: epath.PathLike, step: int | None = None) -> epath.Path:
    """Returns the folder of a whole checkpoint of a run, by default the newest.

    Raises:
        UserError: If there is none.
    """
    directory = stored.absolute(workdir) / FOLDER
    steps, _ = stored.scan(directory)
    step = _last(steps, None) if step is None else step
    if step not in steps:
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        here = list_names(str(step) for step in steps) or "none"
        raise UserError(f"{directory} holds {which}: choose from {here}")
    return directory / str(step)


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """Returns the steps of the whole checkpoints of a run, in order.

    Raises:
        UserError: If the folder can't be read.
    """
    return stored.scan(stored.absolute(workdir) / FOLDER)[0]


def surplus(steps: Sequence[int], keep_last: int, keep_every: int | None) -> list[int]:
    """Returns which of `steps`, given in order, need not be kept; see `Checkpoints`."""
    older = steps[: max(len(steps) - keep_last, 0)]
    return [step for step in older if keep_every is None or step % keep_every]


def _check_fit(path: epath.Path, trees: Mapping[str, PyTree]) -> None:
    """Raises unless a checkpoint has exactly the leaves of these items."""
    here = {name: (path / name).exists() for name in trees}
    wanted = {name: bool(jax.tree.leaves(tree)) for name, tree in trees.items()}
    if here["ema"] and not wanted["ema"]:
        raise UserError(
            f"{path} has averaged parameters, which the config does not ask for: "
            "set train.ema_decay as it was, or delete the folder ema in there to drop them"
        )
    if wanted["ema"] and not here["ema"]:
        raise UserError(
            f"{path} has no averaged parameters, which the config asks for: "
            "set train.ema_decay to 0, or copy the folder params in there to ema"
        )
    misfits = {
        name: stored.misfit(path / name, tree)
        for name, tree in trees.items()
        if here[name] or wanted[name]
    }
    if any(misfits.values()):
        told = "; ".join(f"{name}: {misfit}" for name, misfit in misfits.items() if misfit)
        raise UserError(f"{path} does not fit the config: {told}")


def _last(steps: Sequence[int], default: Any) -> Any:
    return steps[-1] if steps else default
