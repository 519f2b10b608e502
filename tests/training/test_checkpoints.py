"""A step that was saved comes back bit for bit, whatever happened to the steps after it."""

import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import abstract, assert_same, make_state, placed, refusal, steps_in

from dynamicrafter_jax.training.checkpoints import Checkpoints, surplus
from dynamicrafter_jax.training.state import TrainState
from dynamicrafter_jax.weights import converted, stored


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path, keep_last=3) as opened:
        yield opened


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Saves are not finished until this event is set."""
    event, list_files = threading.Event(), stored.list_files

    def wait_and_list(path: object) -> None:
        assert event.wait(60)
        list_files(path)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(stored, "list_files", wait_and_list)
    yield event
    event.set()


# Saving and restoring


@pytest.mark.parametrize("devices", [8, 4, 1])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(
    checkpoints: Checkpoints, tmp_path: Path, devices: int
):
    state = make_state(7)
    assert checkpoints.save(state, wait=True)
    with Checkpoints(tmp_path, keep_last=3) as again:
        assert again.latest_step() == 7
        restored = again.restore(abstract(state, devices))
    assert_same(restored, state)
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == placed(leaf, devices)
    kernel = restored.params["unet"]["in"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16 // devices, 8)


def test_a_state_comes_back_in_parts(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored, "_PART_BYTES", 100)
    reads, parts = [], stored._parts
    monkeypatch.setattr(
        stored, "_parts", lambda leaves: reads.append([*parts(leaves)]) or reads[-1]
    )
    state = make_state(7)
    checkpoints.save(state)
    assert_same(checkpoints.restore(abstract(state)), state)
    sizes = [sum(leaf.size * leaf.dtype.itemsize for leaf in part.values()) for part in reads[0]]
    assert sizes == [32 + 12 + 512, 4], "in order, as soon as there are 100 bytes of them"


def test_a_restored_state_trains_on(checkpoints: Checkpoints):
    """Its buffers are its own: a step may be given them for good."""
    state = make_state(7)
    checkpoints.save(state)
    restored = checkpoints.restore(abstract(state))
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)(restored)
    assert_same(doubled, jax.tree.map(lambda x: x + x, state))


def test_frozen_parameters_pass_through(checkpoints: Checkpoints):
    state = make_state(7)
    checkpoints.save(state._replace(frozen={"vae": jnp.ones(3)}))
    frozen = {"vae": jnp.zeros(3)}
    restored = checkpoints.restore(abstract(state)._replace(frozen=frozen))
    assert restored.frozen is frozen


def test_no_averages_and_no_moments(checkpoints: Checkpoints, tmp_path: Path):
    params = make_state(7).params
    state = TrainState(jnp.int32(7), params, {}, optax.sgd(1.0).init(params), None)
    state = jax.device_put(state, jax.tree.map(lambda leaf: placed(leaf, 8), state))
    checkpoints.save(state, wait=True)
    assert (tmp_path / "checkpoints/7/params").is_dir()
    assert not (tmp_path / "checkpoints/7/ema").exists()
    assert_same(checkpoints.restore(abstract(state)), state)


def test_averages_can_be_read_alone(checkpoints: Checkpoints, tmp_path: Path):
    """As sampling from a run, or exporting it, would."""
    state = make_state(7)
    checkpoints.save(state, wait=True)
    assert state.ema is not None
    read = converted.restore_tree(tmp_path / "checkpoints/7/ema", state.ema)
    assert_same(read, state.ema)


def test_buffers_may_be_donated_as_soon_as_save_returns(
    checkpoints: Checkpoints, blocked: threading.Event
):
    """The state is on its way to disk while the following steps overwrite where it was."""
    state = make_state(1, width=100_000)
    kept = jax.tree.map(lambda leaf: np.array(leaf), state)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    step.lower(state).compile()
    checkpoints.save(state)
    for _ in range(3):
        before = jax.tree.leaves(state)
        state = step(state)
        assert any(leaf.is_deleted() for leaf in before), "the test must donate"
    blocked.set()
    restored = checkpoints.restore(abstract(state))
    np.testing.assert_array_equal(
        np.asarray(restored.params["unet"]["in"]["kernel"]), kept.params["unet"]["in"]["kernel"]
    )
    assert_same(restored, jax.tree.map(jnp.asarray, kept))


def test_a_save_goes_on_in_the_background(
    checkpoints: Checkpoints, tmp_path: Path, blocked: threading.Event
):
    checkpoints.save(make_state(1))
    checkpoints.check()
    assert checkpoints.latest_step() is None
    with (
        pytest.warns(UserWarning, match=r"never finished, and is ignored: 1\.orbax"),
        Checkpoints(tmp_path, keep_last=1) as other,
    ):
        assert other.latest_step() is None
    blocked.set()
    checkpoints.wait()
    assert checkpoints.latest_step() == 1 and steps_in(tmp_path) == ["1"]


def test_a_save_waits_for_the_one_before(
    checkpoints: Checkpoints, tmp_path: Path, blocked: threading.Event
):
    """So a SIGTERM while a step is being written loses neither it nor the newest."""
    checkpoints.save(make_state(1))
    threading.Timer(0.3, blocked.set).start()
    assert checkpoints.save(make_state(2), wait=True)
    assert steps_in(tmp_path) == ["1", "2"]
    assert_same(checkpoints.restore(abstract(make_state(1)), step=1), make_state(1))


def test_a_relative_workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("run", keep_last=1) as opened:
        opened.save(make_state(1))
    assert steps_in(tmp_path / "run") == ["1"]


# Which steps are there


def test_a_step_is_saved_once(checkpoints: Checkpoints, tmp_path: Path):
    assert checkpoints.save(make_state(1))
    assert not checkpoints.save(make_state(1), wait=True)
    with Checkpoints(tmp_path, keep_last=3) as again:
        restored = again.restore(abstract(make_state(1)))
        assert not again.save(restored)


def test_a_run_does_not_overwrite_its_future(checkpoints: Checkpoints, tmp_path: Path):
    for step in (1, 2, 3):
        checkpoints.save(make_state(step), wait=True)
    with Checkpoints(tmp_path, keep_last=3) as again:
        text = refusal(lambda: again.save(make_state(3)))
        restored = again.restore(abstract(make_state(1)), step=1)
        assert not again.save(restored)
        text = refusal(lambda: again.save(make_state(2)))
        assert "holds step 3 already, so step 2 can't be saved: resume from step 3, or del" in text
    assert_same(checkpoints.restore(abstract(make_state(2)), step=2), make_state(2))


@pytest.mark.parametrize("keep_last, keep_every", [(1, None), (2, 6), (3, 5)])
def test_surplus_steps(keep_last: int, keep_every: int | None):
    """Against the definition, step by step, from any set of steps that may be there."""
    random = np.random.default_rng(0)
    for _ in range(50):
        steps = sorted({int(step) for step in random.integers(0, 40, 12)})
        kept = {step for rank, step in enumerate(reversed(steps)) if rank < keep_last}
        kept |= {step for step in steps if keep_every is not None and step % keep_every == 0}
        assert sorted(kept | {*surplus(steps, keep_last, keep_every)}) == steps
        assert not kept & {*surplus(steps, keep_last, keep_every)}


def test_steps_are_kept_as_agreed(tmp_path: Path):
    """Also by a run that is resumed, and with steps that a save did not reach."""
    there = []
    for resumed in ([3, 6, 8], [10, 12, 13]):
        with Checkpoints(tmp_path, keep_last=2, keep_every=6) as opened:
            for step in resumed:
                opened.save(make_state(step, width=1), wait=True)
                there = [old for old in [*there, step][:-2] if old % 6 == 0] + [*there, step][-2:]
                assert steps_in(tmp_path) == sorted(map(str, there))
    assert there == [6, 12, 13]


def test_no_checkpoint_to_restore(checkpoints: Checkpoints, tmp_path: Path):
    text = refusal(lambda: checkpoints.restore(abstract(make_state(1))))
    assert text == f"{tmp_path}/checkpoints holds no checkpoint: there is none"
    checkpoints.save(make_state(1))
    text = refusal(lambda: checkpoints.restore(abstract(make_state(1)), step=2))
    assert text == f"{tmp_path}/checkpoints holds no checkpoint of step 2: there is 1"


def test_other_folders_are_let_be(tmp_path: Path):
    for name in ("best", "07", "1.backup", ".cache", "7x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Checkpoints(tmp_path, keep_last=1) as opened:
            assert opened.latest_step() is None
            opened.save(make_state(1))
    assert steps_in(tmp_path) == sorted(["best", "07", "1.backup", ".cache", "7x", "1"])


# Unfinished, damaged and unfit


def test_an_unfinished_step_is_ignored_until_it_is_cleared_away(
    checkpoints: Checkpoints, tmp_path: Path
):
    checkpoints.save(make_state(1), wait=True)
    half = tmp_path / "checkpoints/2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints/1", half)
    (half / "params/files.json").unlink()
    with (
        pytest.warns(UserWarning, match=r"is ignored: 2\.orbax-checkpoint-tmp$") as warned,
        Checkpoints(tmp_path, keep_last=2) as again,
    ):
        assert again.latest_step() == 1
        assert_same(again.restore(abstract(make_state(1))), make_state(1))
        assert half.exists(), "reading changes nothing: another process may be writing it"
        again.save(make_state(3), wait=True)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert steps_in(tmp_path) == ["1", "3"]


def test_a_removal_cut_short_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Checkpoints(tmp_path, keep_last=1) as opened:
        opened.save(make_state(1))
        opened.wait()
        monkeypatch.setattr(type(stored.absolute(tmp_path)), "rmtree", stop)
        opened.save(make_state(2))
        text = refusal(opened.wait)
        assert "checkpoints/1 can't be removed: Input/output error" in text
        monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"1\.orbax"), Checkpoints(tmp_path, keep_last=1) as again:
        assert again.latest_step() == 2


def stop(*_: object, **__: object) -> None:
    raise OSError(5, os.strerror(5))


def test_a_damaged_step_is_refused_whichever_file_it_is(checkpoints: Checkpoints, tmp_path: Path):
    """Never an older step in its place without a word, and never a part of it."""
    states = [make_state(step, width=1) for step in (1, 2)]
    for state in states:
        checkpoints.save(state, wait=True)
    folder = tmp_path / "checkpoints/2"
    files = [path for item in ("params", "opt_state", "ema") for path in (folder / item).rglob("*")]
    files = [path for path in files if path.is_file()]
    assert len(files) > 20
    for path in files:
        whole = path.read_bytes()
        for part in (None, whole[: len(whole) // 2]):
            path.unlink(missing_ok=True)
            if part is not None:
                path.write_bytes(part)
            text = refusal(lambda: checkpoints.restore(abstract(states[1])))
            assert f"{folder} is damaged ({path.relative_to(folder).parts[0]}/" in text
            assert text.endswith("or delete that folder to resume from step 1")
        path.write_bytes(whole)
    assert_same(checkpoints.restore(abstract(states[1])), states[1])
    files[0].write_bytes(b"")
    with Checkpoints(tmp_path, keep_last=2) as again:
        assert again.latest_step() == 2
        refusal(lambda: again.restore(abstract(states[1])))
        assert_same(again.restore(abstract(states[0]), step=1), states[0])


def test_following_the_advice_on_a_damaged_step(checkpoints: Checkpoints, tmp_path: Path):
    for step in (1, 2):
        checkpoints.save(make_state(step), wait=True)
    shutil.rmtree(tmp_path / "checkpoints/2")
    with Checkpoints(tmp_path, keep_last=2) as opened:
        assert_same(opened.restore(abstract(make_state(1))), make_state(1))


def test_a_missing_item_is_damage(checkpoints: Checkpoints, tmp_path: Path):
    checkpoints.save(make_state(1), wait=True)
    shutil.rmtree(tmp_path / "checkpoints/1/opt_state")
    text = refusal(lambda: checkpoints.restore(abstract(make_state(1))))
    assert "1 is damaged (opt_state/files.json is missing or broken)" in text
    assert text.endswith("to start from the beginning")


def test_leaves_that_do_not_fit_are_listed(checkpoints: Checkpoints):
    checkpoints.save(make_state(1))
    wanted = abstract(make_state(1))
    params = {**wanted.params, "vae": {"new": wanted.step}}
    del params["projector"]
    kernel = params["unet"]["in"]["kernel"]
    params["unet"]["in"]["kernel"] = jax.ShapeDtypeStruct((8, 2), kernel.dtype)
    params["unet"]["scale"] = jax.ShapeDtypeStruct((), jnp.bfloat16)
    text = refusal(lambda: checkpoints.restore(wanted._replace(params=params)))
    for part in (
        "does not fit the config: params: 1 missing: vae/new",
        "1 unexpected: projector/block_10/latents (8, 2)",
        "1 misshapen: unet/in/kernel (16, 8) instead of (8, 2)",
        "1 of another type: unet/scale is float32 instead of bfloat16",
    ):
        assert part in text
    assert "opt_state" not in text


def test_another_optimizer_is_refused(checkpoints: Checkpoints):
    state = make_state(1)
    checkpoints.save(state)
    momentum = optax.sgd(1.0, momentum=0.9).init(state.params)
    text = refusal(lambda: checkpoints.restore(abstract(state._replace(opt_state=momentum))))
    assert "does not fit the config: opt_state: " in text and "4 missing: 0/trace/" in text
    text = refusal(lambda: checkpoints.restore(abstract(state._replace(opt_state=()))))
    assert "opt_state: " in text and "unexpected" in text


def test_averages_that_the_config_does_not_ask_for(checkpoints: Checkpoints, tmp_path: Path):
    state = make_state(1)
    checkpoints.save(state, wait=True)
    wanted = abstract(state._replace(ema=None))
    text = refusal(lambda: checkpoints.restore(wanted))
    assert "has averaged parameters" in text and "set train.ema_decay as it was, or delete" in text
    shutil.rmtree(tmp_path / "checkpoints/1/ema")
    assert_same(checkpoints.restore(wanted), state._replace(ema=None))


def test_averages_that_are_not_there(checkpoints: Checkpoints, tmp_path: Path):
    state = make_state(1)
    checkpoints.save(state._replace(ema=None), wait=True)
    text = refusal(lambda: checkpoints.restore(abstract(state)))
    assert "has no averaged parameters" in text and "copy the folder params in there to em" in text
    shutil.copytree(tmp_path / "checkpoints/1/params", tmp_path / "checkpoints/1/ema")
    assert_same(checkpoints.restore(abstract(state)), state._replace(ema=state.params))
